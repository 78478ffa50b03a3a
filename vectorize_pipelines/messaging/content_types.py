"""The content types that a document within a message may have."""

from collections.abc import Mapping

#: Content types of inline documents -> (ending of a file of that kind, whether `content` is base64).
CONTENT_TYPES: Mapping[str, tuple[str, bool]] = {
    "text/plain": (".txt", False),
    "text/markdown": (".md", False),
    "text/html": (".html", False),
    "text/csv": (".csv", False),
    "text/tab-separated-values": (".tsv", False),
    "application/x-ndjson": (".jsonl", False),
    "application/jsonl": (".jsonl", False),
    "application/pdf": (".pdf", True),
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": (".docx", True),
    "application/vnd.apache.parquet": (".parquet", True),
}
DEFAULT_CONTENT_TYPE = "text/plain"
