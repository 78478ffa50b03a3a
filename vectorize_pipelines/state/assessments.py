"""The table of assessments: what became of each task, judged or not.

A run notes outcomes before it tells them to Kafka, and asks for them before it judges: so a task is judged once and
answered once, whatever is killed, and however often its message came. `assessment_totals` counts the rows.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

import sqlalchemy as sa

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database, Text, metadata, purge_rows
from vectorize_pipelines.state.request_rows import ERROR_CHARACTERS, microseconds, storable, storable_id, time_of

#: Longer texts of a model are cut.
TEXT_CHARACTERS = 10_000
#: Hazards of one row, and the characters of each.
MOST_HAZARDS = 50
HAZARD_CHARACTERS = 500
#: Ids of one query.
_IDS_TOGETHER = 500


class AssessmentState(StrEnum):
    """The end that a task came to."""

    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"


#: Times are microseconds since 1970.
assessments = sa.Table(
    "vectorize_assessments",
    metadata,
    sa.Column("task_id", Text, primary_key=True),
    sa.Column("state", Text, nullable=False),
    sa.Column("day", Text, nullable=False),
    sa.Column("camera_id", Text, nullable=False),
    sa.Column("message_id", Text, nullable=False),
    sa.Column("group_index", sa.BigInteger, nullable=False),
    sa.Column("groups_total", sa.BigInteger, nullable=False),
    sa.Column("occurred_us", sa.BigInteger, nullable=False),
    sa.Column("assessed_us", sa.BigInteger, nullable=False),
    sa.Column("topic", Text, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("level", Text),
    sa.Column("score", sa.Double),
    sa.Column("model", Text),
    sa.Column("key_name", Text),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.Double, nullable=False),
    sa.Column("latency_ms", sa.Double, nullable=False),
    sa.Column("cached", sa.Boolean, nullable=False),
    sa.Column("run_id", Text, nullable=False),
    sa.Column("error_class", Text),
    sa.Column("error_message", Text),
    # The last, since they are long: SQLite then finds the others without reading them.
    sa.Column("summary", Text),
    sa.Column("recommendation", Text),
    sa.Column("hazards", Text),
    sa.Index("vectorize_assessments_by_day", "day", "camera_id", "occurred_us"),
    sa.Index("vectorize_assessments_by_run", "run_id"),
    sqlite_with_rowid=False,
)


# Not frozen, as little as `RequestRow`.
@dataclass(slots=True, kw_only=True)
class AssessmentRow:
    """What became of one task. Times are timezone-aware.

    day            the partition of the task's message
    occurred_at    when the camera saw it
    assessed_at    when the task came to its end
    topic, partition, offset   of the message that was answered
    attempt        how often that message had failed before: a dead letter that is replayed comes with more
    level, score, summary, recommendation, hazards   what the model said; None and empty where it said nothing
    cost           in the currency of the price table
    latency_ms     of the call, its repeats included
    cached         whether the answer was one that had been given before
    """

    task_id: str
    state: AssessmentState
    day: str
    camera_id: str
    message_id: str
    group_index: int
    groups_total: int
    occurred_at: datetime
    assessed_at: datetime
    topic: str
    partition: int
    offset: int
    attempt: int
    run_id: str
    level: str | None = None
    score: float | None = None
    summary: str | None = None
    recommendation: str | None = None
    hazards: Sequence[str] = ()
    model: str | None = None
    key_name: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    latency_ms: float = 0.0
    cached: bool = False
    error_class: str | None = None
    error_message: str | None = None

    @property
    def place(self) -> tuple[str, int, int]:
        """The place of the message: topic, partition, offset."""
        return self.topic, self.partition, self.offset


class Assessments:
    """The table of assessments. Safe for use by several threads and processes. Every method may raise `LedgerError`."""

    def __init__(self, database: Database):
        self._database = database
        self._note = database.bulk_upsert(assessments, _replaces)
        self._note_anyway = database.bulk_upsert(assessments, lambda new, old: sa.true())

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the assessments of an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings))

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._database.close()

    def known(self, task_ids: Iterable[str]) -> dict[str, AssessmentRow]:
        """Return the rows of those of the tasks that have one, by their ids."""
        with self._database.read() as connection:
            return _rows_of(connection, list(task_ids))

    def record(self, rows: Sequence[AssessmentRow], *, force: bool = False) -> dict[str, AssessmentRow]:
        """Note how tasks ended, all or none; return what is noted of each of them now, by task id.

        That is another row where the task had been answered before: by another message, or completed by the same one.
        A task that failed may be answered by a message that comes again with more attempts. With `force` the new rows
        stand in any case. No id may come twice.
        """
        if not rows:
            return {}
        note = self._note_anyway if force else self._note
        with self._database.write() as connection:
            note(connection, [_values_of(row) for row in rows])
            return _rows_of(connection, [row.task_id for row in rows])

    def purge(self, assessed_before: datetime) -> int:
        """Forget tasks that ended before then; return their number."""
        old = assessments.c.assessed_us < microseconds(assessed_before)
        return purge_rows(self._database, assessments, old)


def row_of(found: Any) -> AssessmentRow:
    """Return the row that a query found."""
    given = dict(found._mapping)
    for name in ("occurred", "assessed"):
        given[f"{name}_at"] = time_of(given.pop(f"{name}_us"))
    hazards = json.loads(given.pop("hazards") or "[]")
    return AssessmentRow(**{**given, "state": AssessmentState(given["state"]), "hazards": tuple(hazards)})


def _replaces(new: Any, old: Any) -> sa.ColumnElement[bool]:
    same = sa.and_(
        new.topic == old.topic,
        new.partition == old.partition,
        new.offset == old.offset,
    )
    # Written out: the only parameters of `bulk_upsert` are the values of the row.
    completed: sa.ColumnElement[str] = sa.literal_column(f"'{AssessmentState.COMPLETED.value}'")
    return sa.and_(old.state != completed, sa.or_(same, new.attempt > old.attempt))


def _rows_of(connection: sa.Connection, task_ids: Sequence[str]) -> dict[str, AssessmentRow]:
    stored = {storable_id(each): each for each in task_ids}
    ids = list(stored)
    found: dict[str, AssessmentRow] = {}
    for begin in range(0, len(ids), _IDS_TOGETHER):
        query = sa.select(assessments).where(assessments.c.task_id.in_(ids[begin : begin + _IDS_TOGETHER]))
        for each in connection.execute(query):
            found[stored[each.task_id]] = row_of(each)
    return found


def _values_of(row: AssessmentRow) -> tuple[Any, ...]:
    """In the order of the table's columns."""
    return (
        storable_id(row.task_id),
        row.state.value,
        row.day,
        storable_id(row.camera_id),
        storable_id(row.message_id),
        row.group_index,
        row.groups_total,
        microseconds(row.occurred_at),
        microseconds(row.assessed_at),
        row.topic,
        row.partition,
        row.offset,
        row.attempt,
        row.level,
        row.score,
        row.model,
        row.key_name,
        row.prompt_tokens,
        row.completion_tokens,
        row.cost,
        row.latency_ms,
        row.cached,
        row.run_id,
        storable(row.error_class, ERROR_CHARACTERS),
        storable(row.error_message, ERROR_CHARACTERS),
        storable(row.summary, TEXT_CHARACTERS),
        storable(row.recommendation, TEXT_CHARACTERS),
        json.dumps([storable(each, HAZARD_CHARACTERS) for each in row.hazards[:MOST_HAZARDS]], ensure_ascii=False),
    )
