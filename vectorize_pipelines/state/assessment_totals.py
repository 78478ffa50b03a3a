"""Figures over the table of assessments: by day and camera, and by run.

Called by the asset `camera_risk` and by the checks; every look reads what there is at that moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import sqlalchemy as sa

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.assessments import AssessmentRow, AssessmentState, assessments, row_of
from vectorize_pipelines.state.database import Database

#: The levels that a model gives, the least first; each is a column of the figures.
LEVELS = ("none", "low", "medium", "high", "critical")
_MICROSECONDS = 1e6


@dataclass(frozen=True, slots=True)
class CameraDay:
    """What became of the tasks of one camera on one day.

    levels           the number of completed tasks of each of `LEVELS`
    latency_ms       of the calls for completed tasks, on average and at most; 0 where there is none
    highest          the highest score; None where nothing was judged
    """

    day: str
    camera_id: str
    levels: tuple[int, ...]
    failed: int
    expired: int
    cached: int
    latency_ms: float
    longest_ms: float
    cost: float
    prompt_tokens: int
    completion_tokens: int
    highest: float | None

    @property
    def completed(self) -> int:
        """The number of tasks that were judged."""
        return sum(self.levels)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The number of tasks that came to each end.

    delay_seconds  from the picture to the end of the completed tasks, on average; None where there is none
    """

    completed: int
    failed: int
    expired: int
    delay_seconds: float | None

    @property
    def valid_share(self) -> float | None:
        """The share of the judged tasks whose answer was one; None where none was judged."""
        judged = self.completed + self.failed
        return self.completed / judged if judged else None


class AssessmentTotals:
    """Queries over all assessments. Safe for use by several threads. Every method may raise `LedgerError`."""

    def __init__(self, database: Database):
        self._database = database

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return those of an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings))

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._database.close()

    def by_camera(self, days: Sequence[str]) -> list[CameraDay]:
        """Return the figures of these days, by day and camera."""
        columns = assessments.c
        completed = columns.state == AssessmentState.COMPLETED.value
        query = (
            sa.select(
                columns.day,
                columns.camera_id,
                *(_count(columns.level == level).label(f"level_{level}") for level in LEVELS),
                _count(columns.state == AssessmentState.FAILED.value).label("failed"),
                _count(columns.state == AssessmentState.EXPIRED.value).label("expired"),
                _count(columns.cached).label("cached"),
                sa.func.avg(sa.case((completed, columns.latency_ms))).label("latency_ms"),
                sa.func.max(sa.case((completed, columns.latency_ms))).label("longest_ms"),
                sa.func.sum(columns.cost).label("cost"),
                sa.func.sum(columns.prompt_tokens).label("prompt_tokens"),
                sa.func.sum(columns.completion_tokens).label("completion_tokens"),
                sa.func.max(columns.score).label("highest"),
            )
            .where(columns.day.in_(days))
            .group_by(columns.day, columns.camera_id)
            .order_by(columns.day, columns.camera_id)
        )
        with self._database.read() as connection:
            return [_camera_day(each) for each in connection.execute(query)]

    def worst(self, day: str, most: int) -> list[AssessmentRow]:
        """Return the completed tasks of a day with the highest scores, the highest first."""
        query = (
            sa.select(assessments)
            .where(assessments.c.day == day, assessments.c.state == AssessmentState.COMPLETED.value)
            .order_by(assessments.c.score.desc(), assessments.c.occurred_us, assessments.c.task_id)
            .limit(most)
        )
        with self._database.read() as connection:
            return [row_of(each) for each in connection.execute(query)]

    def outcomes(self, days: Sequence[str]) -> Outcomes:
        """Return how the tasks of these days ended."""
        return self._outcomes(assessments.c.day.in_(days))

    def outcomes_of_run(self, run_id: str) -> Outcomes:
        """Return how the tasks ended that a run ended, of whichever days they are."""
        return self._outcomes(assessments.c.run_id == run_id)

    def _outcomes(self, wanted: sa.ColumnElement[bool]) -> Outcomes:
        columns = assessments.c
        completed = columns.state == AssessmentState.COMPLETED.value
        query = sa.select(
            *(_count(columns.state == each.value).label(each.value) for each in AssessmentState),
            sa.func.avg(sa.case((completed, columns.assessed_us - columns.occurred_us))).label("delay_us"),
        ).where(wanted)
        with self._database.read() as connection:
            found = connection.execute(query).one()
        delay = None if found.delay_us is None else float(found.delay_us) / _MICROSECONDS
        return Outcomes(int(found.completed or 0), int(found.failed or 0), int(found.expired or 0), delay)


def _count(condition: Any) -> sa.Function[int]:
    return sa.func.sum(sa.case((condition, 1), else_=0))


def _camera_day(found: Any) -> CameraDay:
    return CameraDay(
        found.day,
        found.camera_id,
        tuple(int(getattr(found, f"level_{level}")) for level in LEVELS),
        int(found.failed),
        int(found.expired),
        int(found.cached),
        float(found.latency_ms or 0.0),
        float(found.longest_ms or 0.0),
        float(found.cost),
        int(found.prompt_tokens),
        int(found.completion_tokens),
        found.highest,
    )
