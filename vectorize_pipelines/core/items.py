"""`Item`: one thing to embed. Sources make items, the pipeline turns them into records."""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"


class Modality(StrEnum):
    """What kind of content a vector stands for."""

    TEXT = "text"
    IMAGE = "image"
    DOCUMENT = "document"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to embed, and where it came from.

    source_id    request id, or the path or URI of the document it is part of
    item_index   position in a batch request; chunk number in a document
    text         the text to embed; None for an image
    content      an image: its bytes, or its file
    uri          where the source can be read again
    page         1-based page of a paged document, else None
    start, end   what was embedded, in characters of the extracted text: `extracted[start:end] == text`
    content_hash blake2b-128 of the normalised content, see `content_hash`
    occurred_at  the item's own time, timezone-aware UTC
    tokens       as the encoder's tokenizer counts the text, special tokens included; 0 where it is not known
    metadata     the user's own fields; they can be filtered on
    """

    source_id: str
    item_index: int
    modality: Modality
    text: str | None
    uri: str | None
    content_hash: str
    occurred_at: datetime
    page: int | None = None
    start: int | None = None
    end: int | None = None
    tokens: int = 0
    content: Path | bytes | None = None
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)


#: Metadata as every store keeps it.
encode_metadata = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode

#: Deeper structures are no fields to filter on, and exhaust the stack of one program or another.
MAX_METADATA_DEPTH = 32


@dataclass(frozen=True, slots=True)
class MetadataLimits:
    """Limits on one record's metadata: bytes as they are stored, and values, nested ones included."""

    max_bytes: int
    max_values: int

    def excess(self, metadata: Mapping[str, JsonValue], size: int | None = None) -> str | None:
        """Return what is too much about metadata, as the end of a sentence; None where they may stay.

        `size` is `metadata_size(metadata)`, where it is known. Raises `RecursionError` for what Python cannot write.
        """
        values, depth = _extent(metadata, self.max_values)
        if depth > MAX_METADATA_DEPTH:
            return f"is nested more than {MAX_METADATA_DEPTH} levels deep; flatten it"
        if values > self.max_values:
            return f"has more than {self.max_values:,} values"
        size = metadata_size(metadata) if size is None else size
        return f"has {size:,} bytes; {self.max_bytes:,} are allowed" if size > self.max_bytes else None


def metadata_size(metadata: Mapping[str, JsonValue]) -> int:
    """Return the bytes of metadata as they are stored."""
    return len(encode_metadata(metadata).encode("utf-8", "surrogatepass"))


def _extent(metadata: Mapping[str, JsonValue], enough: int) -> tuple[int, int]:
    """Return how many values there are, counted a little beyond `enough` at most, and how deep they are nested."""
    values = depth = 0
    level: list[object] = [metadata]
    while level and values <= enough and depth <= MAX_METADATA_DEPTH:
        depth += 1
        inner: list[object] = []
        for each in level:
            members = each.values() if isinstance(each, Mapping) else each if isinstance(each, list) else ()
            values += len(members)
            if values > enough:
                break
            inner += [member for member in members if isinstance(member, (Mapping, list))]
        level = inner
    return values, depth


def content_hash(content: str | bytes) -> str:
    """Return blake2b-128, hexadecimal. Text is NFC-normalised first, so that equal texts hash alike.

    Records keep it: a change here makes every item look changed.
    """
    data = (
        unicodedata.normalize("NFC", content).encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    )
    return hashlib.blake2b(data, digest_size=16).hexdigest()
