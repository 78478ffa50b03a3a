"""The rows of the request ledger: what is known of one request, and how the table holds it.

Used by `state.ledger`, which records and finds them, and by `state.request_totals`, which counts them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from pydantic_core import from_json, to_json

from vectorize_pipelines.core.items import JsonValue, Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.state.database import Text, metadata

#: Longer messages are cut; the dead letter has the whole.
ERROR_CHARACTERS = 2000
#: Larger metadata are not kept here, only with the rows in the store; by default no message has such.
METADATA_BYTES = 64 * 1024
#: A request whose rows all have their vectors is not done before the store has them.
MOST_PROGRESS = 0.99
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

#: Times are microseconds since 1970. What a request's message is known by: topic, partition, offset.
requests = sa.Table(
    "vectorize_requests",
    metadata,
    sa.Column("request_id", Text, primary_key=True),
    sa.Column("state", Text, nullable=False),
    sa.Column("modality", Text, nullable=False),
    sa.Column("collection", Text),
    sa.Column("submitted_us", sa.BigInteger, nullable=False),
    sa.Column("started_us", sa.BigInteger),
    sa.Column("finished_us", sa.BigInteger),
    sa.Column("run_id", Text),
    sa.Column("topic", Text, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("timestamp_ms", sa.BigInteger, nullable=False),
    sa.Column("items", sa.BigInteger, nullable=False),
    sa.Column("vectors", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("error_class", Text),
    sa.Column("error_message", Text),
    sa.Column("task_type", Text),
    sa.Column("done_items", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("known_items", sa.BigInteger, nullable=False, server_default="0"),
    # Behind the others, since it may be long: SQLite then finds those without reading it. What is empty or 0 behind it
    # takes no place in a row.
    sa.Column("metadata", Text),
    sa.Column("truncated", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("warnings", Text),
    # Each index costs a tenth of the writing. A page of several states is merged from a page of each; a type has an
    # index of its own, since a rare one among millions would otherwise be looked for in all of them.
    sa.Index("vectorize_requests_by_state", "state", "submitted_us", "request_id"),
    sa.Index("vectorize_requests_by_task_type", "task_type", "state", "submitted_us", "request_id"),
    sqlite_with_rowid=False,
)


# Not frozen: of a frozen one, making each costs three times as much, and runs make thousands a second.
@dataclass(slots=True, kw_only=True)
class RequestRow:
    """The row of one request: what became of it. Times are timezone-aware.

    submitted_at   the message's timestamp
    started_at     when a run took it up; None while it waits
    finished_at    when it came to a final state
    topic, partition, offset, timestamp_ms   of the message
    items          texts, images or documents in it
    vectors        rows that the store holds of it
    tokens         that were encoded
    error_class, error_message   why it failed
    task_type      as its message says; None of a message that is no request, and of rows of earlier versions
    done, known    while it is processed: rows that have their vectors, of those that it will have as far as is known
    truncated      tokens of its texts that were left out, since the model takes no more
    warnings       what of it is not embedded, and what was guessed: each has `kind`, `what` and `remedy`
    metadata       its own; None where they are not known: in rows of earlier versions, of messages that are no
                   requests, and where they are too large (`METADATA_BYTES`, in pages `LISTED_METADATA_CHARACTERS`)
    """

    request_id: str
    state: RequestState
    modality: Modality
    submitted_at: datetime
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    collection: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    run_id: str | None = None
    items: int = 0
    vectors: int = 0
    tokens: int = 0
    error_class: str | None = None
    error_message: str | None = None
    task_type: str | None = None
    done: int = 0
    known: int = 0
    metadata: Mapping[str, JsonValue] | None = None
    truncated: int = 0
    warnings: Sequence[Mapping[str, str]] = ()

    @property
    def has_own_run(self) -> bool:
        """True of a request that came with a run for it alone, and lies in no topic."""
        return not self.topic

    @property
    def progress(self) -> float:
        """The part of it that is done, from 0 to 1: 1 once it has ended, however it ended, and not before."""
        if self.state.is_final:
            return 1.0
        if self.state is not RequestState.PROCESSING or not self.known:
            return 0.0
        return min(self.done / self.known, MOST_PROGRESS)

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON has it: under the names of requests and result events, times in ISO 8601, UTC."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        told = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
        task_id, status = told.pop("request_id"), told.pop("state")
        return {"task_id": task_id, "status": status, "progress": self.progress, **told}

    @property
    def version(self) -> tuple[int, str, int, int]:
        """The order of messages with the same request id."""
        return self.timestamp_ms, self.topic, self.partition, self.offset


def microseconds(time: datetime) -> int:
    """Return a time in microseconds since 1970. Raises `ValueError` for one without a zone, which says too little."""
    if time.tzinfo is None:
        raise ValueError(f"{time} has no time zone")
    return (time - _EPOCH) // _MICROSECOND


def time_of(stored: int) -> datetime:
    """Return the time of `microseconds`."""
    return _EPOCH + timedelta(microseconds=stored)


def storable(text: str | None, characters: int) -> str | None:
    """Return a text from elsewhere as every database takes it: no NUL, no half characters, not too long."""
    if text is None:
        return None
    return text[:characters].replace("\x00", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def storable_id(request_id: str) -> str:
    """Return the id under which a request is stored."""
    # A valid request's is printable; that of a message which is none need not be.
    return request_id if request_id.isprintable() else storable(request_id, len(request_id)) or ""


def values_of(row: RequestRow) -> tuple[Any, ...]:
    """Return the values in the order of the table's columns."""
    return (
        storable_id(row.request_id),
        row.state.value,
        row.modality.value,
        row.collection,
        microseconds(row.submitted_at),
        None if row.started_at is None else microseconds(row.started_at),
        None if row.finished_at is None else microseconds(row.finished_at),
        row.run_id,
        row.topic,
        row.partition,
        row.offset,
        row.timestamp_ms,
        row.items,
        row.vectors,
        row.tokens,
        row.error_class,
        storable(row.error_message, ERROR_CHARACTERS),
        row.task_type,
        row.done,
        row.known,
        _written(row.metadata),
        row.truncated,
        json.dumps(row.warnings) if row.warnings else None,
    )


def _written(metadata: Mapping[str, JsonValue] | None) -> str | None:
    if not metadata:
        return None if metadata is None else "{}"
    text = to_json(metadata)
    return text.decode() if len(text) <= METADATA_BYTES else None


def row_of(found: Any) -> RequestRow:
    """Return the row that a query found."""
    values = dict(found._mapping)
    for name in ("submitted", "started", "finished"):
        stored = values.pop(f"{name}_us")
        values[f"{name}_at"] = None if stored is None else time_of(stored)
    values["state"] = RequestState(values["state"])
    values["modality"] = Modality(values["modality"])
    values["done"], values["known"] = values.pop("done_items"), values.pop("known_items")
    if values["metadata"] is not None:
        values["metadata"] = from_json(values["metadata"])
    values["warnings"] = tuple(json.loads(values["warnings"] or "[]"))
    return RequestRow(**values)
