"""Documents become text, and text becomes chunks that fit the encoder.

`ParserPool` reads and parses files in processes of their own, `parse` does the same in this process, and
`Chunker` cuts what they give. Called by the readers of files and of messages in `pipeline/`.
"""

from vectorize_pipelines.documents.chunking import Chunker
from vectorize_pipelines.documents.parsing import parse
from vectorize_pipelines.documents.pool import ParseOutcome, ParserPool
from vectorize_pipelines.documents.recognition import SUPPORTED_SUFFIXES
from vectorize_pipelines.documents.types import Chunk, Member, Page, ParsedDocument, Section, Span, TableRow

__all__ = [
    "SUPPORTED_SUFFIXES",
    "Chunk",
    "Chunker",
    "Member",
    "Page",
    "ParseOutcome",
    "ParsedDocument",
    "ParserPool",
    "Section",
    "Span",
    "TableRow",
    "parse",
]
