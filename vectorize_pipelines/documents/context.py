"""What a parser is told beside the bytes."""

from dataclasses import dataclass

from vectorize_pipelines.settings import DocumentSettings


@dataclass(frozen=True, slots=True)
class ParseContext:
    """How one document is to be read.

    settings    limits and choices of the installation
    name        path or URI of the document
    media_type  what its carrier says that it is (HTTP's `Content-Type`, a request's `content_type`), with its
                parameters: "text/html; charset=windows-1251"; None where it has none, as a file
    """

    settings: DocumentSettings
    name: str
    media_type: str | None = None
