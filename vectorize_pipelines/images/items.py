"""Images as items: one an image, decoded later by the encoder."""

import os
from collections.abc import Mapping
from datetime import datetime

from vectorize_pipelines.core.items import Item, JsonValue, Modality
from vectorize_pipelines.images.pool import ImageDecoders

#: Part of the fingerprint: raise it when the same image gives another item than before.
READER_VERSION = 2


def image_item(
    data: bytes,
    digest: str,
    decoders: ImageDecoders,
    *,
    source_id: str,
    uri: str,
    occurred_at: datetime,
    index: int = 0,
    metadata: Mapping[str, JsonValue] | None = None,
) -> Item:
    """Return an image's bytes, of which `digest` is the content hash, as an item.

    `metadata` wins over what the image says. Raises `ItemError`s of `images`.
    """
    header = decoders.header(data)
    return Item(
        source_id=source_id,
        item_index=index,
        modality=Modality.IMAGE,
        text=None,
        uri=uri,
        content_hash=digest,
        occurred_at=occurred_at,
        content=data,  # not the path: the file may be another one by the time it is decoded
        metadata={
            "name": os.path.basename(uri),  # noqa: PTH119 (may be a URI)
            "format": header.format.lower(),
            "width": header.width,
            "height": header.height,
            **(metadata or {}),
        },
    )
