"""Hits and records as JSON: what `vectorize search --json` prints and the HTTP server answers."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.core.records import RECORD_FIELDS
from vectorize_pipelines.stores.contents import rows_of

if TYPE_CHECKING:
    import pyarrow as pa

_SCORE_DIGITS = 6


def hits_as_json(found: "pa.Table") -> list[dict[str, Any]]:
    """Return what `VectorStore.search` has found: `score`, and the record's fields with their metadata as objects."""
    return [{"score": round(float(hit["score"]), _SCORE_DIGITS), **_fields(hit)} for hit in rows_of(found)]


def records_as_json(found: "pa.Table") -> list[dict[str, Any]]:
    """Return rows with all of `RECORD_FIELDS`; times are texts, in UTC."""
    return [_fields(row) for row in rows_of(found)]


def json_text(content: object, *, indent: int | None = None) -> str:
    """Return JSON that UTF-8 can hold: half a character, which metadata may have, stays the escape that it was."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode()


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: row[name] for name in RECORD_FIELDS}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}
