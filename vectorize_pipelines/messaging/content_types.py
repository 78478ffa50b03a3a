"""The content types that a document within a message may have, and which of them make its content base64."""

import re
from collections.abc import Mapping

from vectorize_pipelines.core.base64_text import decode_base64
from vectorize_pipelines.documents.recognition import FORMATS, bears_mark

#: Content types of inline documents -> (ending of a file of that kind, whether `content` is base64).
CONTENT_TYPES: Mapping[str, tuple[str, bool]] = {
    media_type: (each.suffixes[0], each.binary) for each in FORMATS for media_type in each.media_types
}
DEFAULT_CONTENT_TYPE = "text/plain"
#: Bytes of any kind, in base64: their mark tells the format, or the ending of the document's title.
ANY_BYTES = "application/octet-stream"
_MAIL = "message/rfc822"
#: What text is looked at for before it is taken for base64 and decoded.
_BASE64_HEAD = re.compile(r"[A-Za-z0-9+/_=\r\n-]*")
_HEAD = 400


def decoded_content(content: str, content_type: str) -> tuple[str | bytes, str]:
    """Return a document's content, in bytes where it is base64, and its content type. Raises `ValueError`.

    Of a type of text it is base64 where that stands for a binary format, whose mark no text has by chance: it is
    `ANY_BYTES` then. Mail may be either: a message has a colon in its headers, base64 has none; nor has it spaces.
    """
    if content_type == ANY_BYTES or CONTENT_TYPES[content_type][1]:
        return decode_base64(content), content_type
    if _BASE64_HEAD.fullmatch(content, 0, _HEAD) is None:
        return content, content_type
    try:
        found = decode_base64(content)
    except ValueError:
        return content, content_type
    if bears_mark(found):
        return found, ANY_BYTES
    return (found if content_type == _MAIL and b":" in found else content), content_type
