"""The inside of a process that decodes images: bytes of a file in, pixels out.

`service` is what `pool.ImageDecoders` has its processes run.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.core.image_limits import ImageLimits
from vectorize_pipelines.images.decoding import decode, prepare_codecs, read_header
from vectorize_pipelines.images.preprocessing import Preprocessing, shrunk

if TYPE_CHECKING:
    from vectorize_pipelines.sandbox import Message, Reserve, Service

#: An image that takes no more than this, decoded, does not wait for its turn: most do not.
UNRESERVED_BYTES = 64 * 2**20


def service(config: Mapping[str, Any]) -> "Service":
    """Return the service of a decoding process; `config` is what `pool.ImageDecoders` made for it."""
    from vectorize_pipelines.sandbox import Message

    limits = ImageLimits(**config["limits"])
    prepare_codecs()

    def answer(message: "Message", reserve: "Reserve") -> "Message":
        wanted, longest_side = message.header["preprocessing"], message.header.get("thumbnail")
        if wanted is None and longest_side is None:
            header = read_header(message.body, limits)
            return Message([header.format, header.width, header.height])

        def reserve_much(size: int) -> None:
            if size > UNRESERVED_BYTES:
                reserve(size)

        if longest_side is not None:
            thumbnail = shrunk(decode(message.body, longest_side, limits, reserve_much), longest_side)
            return Message([thumbnail.width, thumbnail.height], thumbnail.tobytes())
        preprocessing = Preprocessing(**wanted)
        image = decode(message.body, preprocessing.shortest_side, limits, reserve_much)
        return Message(None, preprocessing.prepared(image).tobytes())

    return answer
