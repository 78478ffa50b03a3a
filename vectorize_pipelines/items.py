"""`Item`: one thing to embed. Sources make items, the pipeline turns them into records."""

import hashlib
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


def content_hash(content: str | bytes) -> str:
    """blake2b-128, hexadecimal. Text is NFC-normalised first, so that equal texts hash alike.

    Records keep it: a change here makes every item look changed.
    """
    data = (
        unicodedata.normalize("NFC", content).encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    )
    return hashlib.blake2b(data, digest_size=16).hexdigest()
