"""The table of assessments: one row a task, whoever answers it."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.assessment_totals import AssessmentTotals
from vectorize_pipelines.state.assessments import AssessmentRow, Assessments, AssessmentState

NOW = datetime(2026, 11, 30, 12, 0, 0, 123456, tzinfo=UTC)


def row(task_id: str = "task", **further: Any) -> AssessmentRow:
    given: dict[str, Any] = {
        "state": AssessmentState.COMPLETED,
        "level": "high",
        "score": 0.75,
        "summary": "a car\x00 \ud800",
        "hazards": ("one", "two"),
        "recommendation": "call",
        "model": "judge",
        "key_name": "first",
        "prompt_tokens": 300,
        "completion_tokens": 50,
        "cost": 0.25,
        "latency_ms": 800.5,
        **further,
    }
    return AssessmentRow(
        task_id=task_id,
        day=given.pop("day", "2026-11-30"),
        camera_id=given.pop("camera_id", "camera"),
        message_id="detection",
        group_index=2**40,
        groups_total=3,
        occurred_at=given.pop("occurred_at", NOW),
        assessed_at=given.pop("assessed_at", NOW + timedelta(seconds=2)),
        topic="tasks",
        partition=1,
        offset=given.pop("offset", 7),
        attempt=given.pop("attempt", 0),
        run_id=given.pop("run_id", "run"),
        **given,
    )


@pytest.fixture
def assessments(settings: Settings) -> Iterator[Assessments]:
    with closing(Assessments.open(settings)) as opened:
        yield opened


def test_a_row_is_found_as_it_was_noted(assessments: Assessments) -> None:
    noted = row(cached=True)
    assessments.record([noted])
    assert assessments.known(["task", "other"]) == {"task": replace(noted, summary="a car\ufffd ?")}


def test_only_the_first_message_of_a_task_is_answered(assessments: Assessments) -> None:
    first, second = row(offset=7), row(offset=8, level="low")
    assert assessments.record([first])["task"].offset == 7
    assert assessments.record([second])["task"].level == "high"
    assert assessments.record([row(offset=7, level="low")])["task"].level == "high", "it may have been told"
    assert assessments.record([second], force=True)["task"].level == "low"


@pytest.mark.parametrize("state", [AssessmentState.FAILED, AssessmentState.EXPIRED])
def test_what_was_not_judged_may_be_by_the_same_message_or_a_later_attempt(
    assessments: Assessments, state: AssessmentState
) -> None:
    unjudged = row(state=state, level=None, score=None, error_class="Error", error_message="why")
    assessments.record([unjudged])
    assert assessments.record([row(offset=8)])["task"].state is state, "a copy of it"
    assert assessments.record([row(offset=8, attempt=1)])["task"].state is AssessmentState.COMPLETED
    assessments.record([replace(unjudged, task_id="again")])
    assert assessments.record([row("again")])["again"].state is AssessmentState.COMPLETED


def test_figures_by_camera_and_of_a_run(assessments: Assessments, settings: Settings) -> None:
    unjudged: dict[str, Any] = {"level": None, "score": None, "cost": 0.0, "latency_ms": 0.0}
    assessments.record(
        [
            row("a", score=0.5, latency_ms=100),
            row("b", level="none", score=0.1, latency_ms=300, cached=True),
            row("c", state=AssessmentState.FAILED, **unjudged),
            row("d", state=AssessmentState.EXPIRED, camera_id="other", run_id="another", **unjudged),
            row("e", day="2026-10-01"),
        ]
    )
    with closing(AssessmentTotals.open(settings)) as totals:
        camera, other = totals.by_camera(["2026-11-30"])
        assert (camera.levels, camera.completed, camera.failed, camera.cached) == ((1, 0, 0, 1, 0), 2, 1, 1)
        assert (camera.latency_ms, camera.longest_ms, camera.cost, camera.highest) == (200, 300, 0.5, 0.5)
        assert (other.completed, other.expired, other.highest) == (0, 1, None)
        assert [each.task_id for each in totals.worst("2026-11-30", 10)] == ["a", "b"]
        of_run = totals.outcomes_of_run("run")
        assert (of_run.completed, of_run.failed, of_run.expired, of_run.delay_seconds) == (3, 1, 0, 2.0), "of any day"
        of_day = totals.outcomes(["2026-11-30"])
        assert (of_day.completed, of_day.failed, of_day.expired) == (2, 1, 1)
        assert totals.outcomes(["2026-11-28"]).valid_share is None


def test_old_rows_are_forgotten(assessments: Assessments) -> None:
    assessments.record([row("old"), row("new", assessed_at=NOW + timedelta(days=3))])
    assert assessments.purge(NOW + timedelta(days=1)) == 1
    assert set(assessments.known(["old", "new"])) == {"new"}
