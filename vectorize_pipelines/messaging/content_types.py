"""The content types that a document within a message may have: those of every format that documents are read in."""

from collections.abc import Mapping

from vectorize_pipelines.documents.recognition import FORMATS

#: Content types of inline documents -> (ending of a file of that kind, whether `content` is base64).
CONTENT_TYPES: Mapping[str, tuple[str, bool]] = {
    media_type: (each.suffixes[0], each.binary) for each in FORMATS for media_type in each.media_types
}
DEFAULT_CONTENT_TYPE = "text/plain"
