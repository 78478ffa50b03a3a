"""`ParseContext`: what a parser of one format gets beside the bytes of a document. Made by `parsing`."""

from collections.abc import Callable
from dataclasses import dataclass, field

from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.settings import DocumentSettings


@dataclass(slots=True)
class Unpacked:
    """How much has been taken out of a file so far, at all depths together."""

    members: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class ParseContext:
    """How one document is to be read.

    settings    limits and choices of the installation
    name        path or URI of the document
    media_type  what its carrier says that it is (HTTP's `Content-Type`, a request's `content_type`), with its
                parameters: "text/html; charset=windows-1251"; None where it has none, as a file
    parse       parses what lies inside of the document, given a context of its own; raises `ItemError`s
    depth       in how many archives and messages the document lies
    unpacked    what has been taken out of the file that all this lies in
    """

    settings: DocumentSettings
    name: str
    media_type: str | None = None
    parse: "Callable[[bytes, ParseContext], ParsedDocument] | None" = None
    depth: int = 0
    unpacked: Unpacked = field(default_factory=Unpacked)
