"""Small pictures of the images that rows were made from, for the page of hits.

An image is read again from where its row says, under the rules by which it was read the first time
(`sources.rereading`), decoded in a confined process, and shown only where its bytes are those that the row was made
from. So nobody sees anything that is not in the collection, whatever lies at its address by now.
"""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from anyio import CapacityLimiter

from vectorize_pipelines.core.items import content_hash
from vectorize_pipelines.encoders.configured import image_decoders
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.fetching import MissingContentError
from vectorize_pipelines.sources.rereading import ContentReader

if TYPE_CHECKING:
    from vectorize_pipelines.images.preprocessing import Pixels

#: Columns of a row that are needed.
COLUMNS = ("modality", "uri", "source_id", "content_hash")
MEDIA_TYPE = "image/jpeg"
LONGEST_SIDE = 256
_QUALITY = 85
#: Each may have an image of the largest size that is allowed in memory.
_TOGETHER = 2
#: For what lies on another host: longer than that nobody waits for a thumbnail.
_SECONDS = 10.0


class Thumbnails:
    """Makes thumbnails, few at a time; further ones wait. Processes are started when the first one is asked for."""

    def __init__(self, settings: Settings) -> None:
        rules = settings.uris.model_copy(update={"timeout_seconds": min(settings.uris.timeout_seconds, _SECONDS)})
        bounded = settings.model_copy(update={"uris": rules})
        self._contents = ContentReader(bounded, settings.images.max_file_bytes)
        self._decoders = image_decoders(settings)
        self._limiter = CapacityLimiter(_TOGETHER)

    async def of(self, row: Mapping[str, Any]) -> bytes:
        """Return the thumbnail of a row of an image, with a URI, of which `COLUMNS` are needed.

        Raises `ItemError` where the image is not there any more, may not be read, or is another one by now.
        """
        return await anyio.to_thread.run_sync(self._made, row, limiter=self._limiter)

    def close(self) -> None:
        """End the processes, unless encoders use them."""
        self._decoders.close()

    def _made(self, row: Mapping[str, Any]) -> bytes:
        content = self._contents.read(row)
        if content_hash(content) != row["content_hash"]:
            raise MissingContentError("has changed since it was embedded")
        return _jpeg(self._decoders.thumbnail(content, LONGEST_SIDE))


def _jpeg(pixels: "Pixels") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
