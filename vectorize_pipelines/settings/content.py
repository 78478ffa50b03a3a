"""Settings of what is embedded: the folders, the documents and images in them, and what requests point at."""

import os
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from vectorize_pipelines.core.encodings import REPLACEMENT, encoding_name
from vectorize_pipelines.core.image_limits import DEFAULT_LIMITS, ImageLimits
from vectorize_pipelines.core.installation import checkout
from vectorize_pipelines.core.items import MetadataLimits
from vectorize_pipelines.settings.base import COLLECTION_NAME, Names, Section, read_json

#: What the values of a column of a table may be stated to be.
ColumnType: TypeAlias = Literal["text", "number", "boolean", "date"]

_FOLLOW_LINKS = "links that lead out of the folder are followed; false: they are listed as failures, and not read"

_ALLOW_EMPTY = (
    "a folder that holds nothing any more of what was embedded has its rows deleted; false: such a run is refused, "
    "since a disk may not be mounted"
)


def _example_corpus() -> str | None:
    """The corpus of the examples, which only a checkout has."""
    project = checkout()
    return None if project is None else str(project / "examples" / "corpus")


_FILES_PER_RUN = (
    "the sensor and the schedule launch so many runs beside each other, each over a shard, that none has more files; "
    "null: one run over all"
)


class CorpusSettings(Section):
    """The folder of documents behind the asset `corpus_embeddings`."""

    path: str | None = Field(_example_corpus(), description="a folder, a file or any fsspec URL")
    collection: str = Field("corpus", pattern=COLLECTION_NAME, description="the collection it is stored in")
    watch: bool = Field(True, description="sensor and schedule are on from the start, for a path of your own")
    include: Names = Field((), description="patterns of what is taken; empty: supported formats")
    exclude: Names = Field((".*",), description="patterns of what is left out, as in .gitignore")
    follow_links: bool = Field(False, description=_FOLLOW_LINKS)
    allow_empty: bool = Field(False, description=_ALLOW_EMPTY)
    files_per_run: int | None = Field(None, ge=1, description=_FILES_PER_RUN)


class GallerySettings(Section):
    """The folder of images behind the asset `gallery_embeddings`."""

    path: str | None = Field(None, description="a folder, a file or any fsspec URL")
    collection: str = Field("gallery", pattern=COLLECTION_NAME, description="the collection it is stored in")
    watch: bool = Field(True, description="sensor and schedule are on from the start, where there is a path")
    include: Names = Field((), description="patterns of what is taken; empty: supported formats")
    exclude: Names = Field((".*",), description="patterns of what is left out, as in .gitignore")
    follow_links: bool = Field(False, description=_FOLLOW_LINKS)
    allow_empty: bool = Field(False, description=_ALLOW_EMPTY)
    files_per_run: int | None = Field(None, ge=1, description=_FILES_PER_RUN)


def _known_encodings(encodings: dict[str, str]) -> dict[str, str]:
    for pattern, label in encodings.items():
        if encoding_name(label) in (None, REPLACEMENT):
            raise ValueError(f"{label!r} for {pattern!r} is no encoding; take a label of the encoding standard")
        if pattern.startswith("!"):
            raise ValueError(f"{pattern!r} would take something out; name what has an encoding, the last pattern wins")
    return encodings


class DocumentSettings(Section):
    """Reading and cutting documents; the limits are per file."""

    max_file_bytes: int = Field(100 * 2**20, ge=1, description="a larger file is refused, unread")
    max_decompressed_bytes: int = Field(400 * 2**20, ge=1, description="what a compressed file may grow to")
    timeout_seconds: float = Field(120.0, gt=0, description="a file that takes longer to parse is refused")
    memory_bytes: int = Field(4 * 2**30, ge=2**28, description="address space of a parser process")
    parser_processes: int = Field(max(1, (os.cpu_count() or 2) // 2), ge=1, description="files parsed side by side")
    max_members: int = Field(
        10_000, ge=1, description="an archive, or a message with attachments, that holds more files is refused"
    )
    max_rows: int = Field(500_000, ge=1, description="a table of more rows is refused")
    max_chunks: int = Field(500_000, ge=1, description="a document that is cut into more passages is refused")
    max_metadata_bytes: int = Field(
        64 * 2**10, ge=1, description="a document, or a row of a table, with more metadata (as JSON) is refused"
    )
    max_metadata_values: int = Field(1000, ge=1, description="the same, by values; those within others count too")
    encodings: Annotated[dict[str, str], BeforeValidator(read_json), AfterValidator(_known_encodings)] = Field(
        {},
        description="encodings of text, HTML, CSV and the like which say none or a wrong one, by path, as JSON: "
        '`{"old/*.txt": "windows-1251"}`; patterns as in .gitignore, the last that matches counts; labels as on Web',
    )
    pdf_engine: Literal["auto", "pdfium", "pypdf"] = Field(
        "auto", description="auto: each page by pdfium, or by pypdf where pdfium does not read it"
    )
    pdf_annotations: bool = Field(False, description="comments in a PDF are part of its pages' text")
    ocr: bool = Field(False, description="pages of a PDF without text are recognised; needs the extra `ocr`")
    office_comments: bool = Field(
        True, description="comments in office documents are embedded, each behind the paragraph that it is on"
    )
    text_columns: Names = Field(
        ("text",), description="columns of a table that are embedded, joined by a line; it has to have one of them"
    )
    metadata_columns: Names | None = Field(None, description="columns kept as metadata; null: all others")
    column_types: Annotated[dict[str, ColumnType], BeforeValidator(read_json)] = Field(
        {},
        description="columns of tables -> what their values are read as: text, number, boolean or date (ISO 8601); "
        "other columns have the types of the file, and none in CSV and TSV",
    )
    chunk_tokens: int | None = Field(None, ge=16, description="longest chunk in tokens; null: what the model takes")
    overlap_tokens: int = Field(32, ge=0, description="tokens repeated from one chunk to the next")
    chunk_long_texts: bool = Field(
        False,
        description="a request for one text is cut into passages as a document is, where its own `chunk` does not say "
        "otherwise; false: what its model does not take is left out, and said to be",
    )

    @property
    def metadata_limits(self) -> MetadataLimits:
        """What the metadata of a document, or of a row of a table, may have."""
        return MetadataLimits(self.max_metadata_bytes, self.max_metadata_values)


class ImageSettings(Section):
    """Reading images; the limits are per image, but for `decoding_bytes`."""

    max_file_bytes: int = Field(DEFAULT_LIMITS.max_bytes, ge=1, description="a larger file is refused, unread")
    max_pixels: int = Field(
        DEFAULT_LIMITS.max_pixels, ge=1, description="an image of more pixels, width times height, is refused"
    )
    timeout_seconds: float = Field(
        DEFAULT_LIMITS.timeout_seconds, gt=0, description="an image that takes longer to decode is refused"
    )
    memory_bytes: int = Field(
        DEFAULT_LIMITS.memory_bytes, ge=2**29, description="address space of a process that decodes"
    )
    decoding_bytes: int = Field(
        DEFAULT_LIMITS.decoding_bytes,
        ge=2**26,
        description="what images decoded at the same time may take together; a large one waits for its turn",
    )
    decoding_threads: int | None = Field(
        None, ge=1, description="images decoded side by side, each in a process; null: one a core"
    )

    @property
    def limits(self) -> ImageLimits:
        """The limits as those who decode take them."""
        return ImageLimits(
            max_bytes=self.max_file_bytes,
            max_pixels=self.max_pixels,
            memory_bytes=self.memory_bytes,
            timeout_seconds=self.timeout_seconds,
            decoding_bytes=self.decoding_bytes,
        )


class UriSettings(Section):
    """From where the content of a request may be fetched."""

    allowed_schemes: Names = Field(
        ("https", "http"), description="of URIs; s3, gs, … go through fsspec with this installation's credentials"
    )
    allowed_hosts: Names = Field(
        (),
        description="hosts, *.domains or buckets; empty: every public host for http(s), every bucket of an allowed "
        "scheme, and no host of any other scheme",
    )
    allowed_roots: Names = Field((), description="folders from which local files are read; empty: none")
    allow_private: bool = Field(False, description="private and loopback addresses may be fetched from")
    max_bytes: int = Field(100 * 2**20, ge=1, description="a larger content is refused, also once decompressed")
    max_held_bytes: int = Field(
        512 * 2**20,
        ge=1,
        description="so much fetched content a run over requests holds at a time; what is being fetched counts with "
        "its limit, or the size that its URI announces; a request that needs more by itself is refused",
    )
    timeout_seconds: float = Field(60.0, gt=0, description="limit for one content, redirects included")
    max_redirects: int = Field(5, ge=0, description="each is checked as the first address is")
    keep_query: bool = Field(
        False,
        description="records keep a URI with its query; by default without, since it may be a signature, and images "
        "behind signed URIs cannot be read again when a collection is embedded again",
    )
