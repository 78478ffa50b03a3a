"""Rows as the store has them, compared with the items of their source."""

from typing import Any, TypeAlias

from vectorize_pipelines.core.items import Item
from vectorize_pipelines.core.records import RECORD_FIELDS

#: Field -> value; which fields depends on who read the row.
StoredRow: TypeAlias = dict[str, Any]

#: The fields that tell whether a row is up to date. Its text does not: the row's content hash stands for that.
FIELDS_BUT_TEXT = tuple(name for name in RECORD_FIELDS if name not in ("text", "run_id", "embedded_at"))


def has_fields_of(row: StoredRow, item: Item, day: str) -> bool:
    """Return whether a row of the same content, read with `FIELDS_BUT_TEXT`, equals the item in every other field."""
    return (
        row["occurred_at"] == item.occurred_at
        and row["partition"] == day
        and row["modality"] == item.modality
        and row["uri"] == item.uri
        and (row["page"], row["start"], row["end"]) == (item.page, item.start, item.end)
        and row["metadata"] == item.metadata
    )
