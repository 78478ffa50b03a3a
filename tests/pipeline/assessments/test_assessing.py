"""What becomes of a task whose call fails: its own time, or the provider's trouble."""

import asyncio
from typing import Any

import pytest

from tests.pipeline.assessments.tasks import pending
from vectorize_pipelines.errors import NoKeyAvailableError
from vectorize_pipelines.pipeline.assessments.assessing import EXPIRED, Judge
from vectorize_pipelines.settings import Settings

NOW = 1_800_000_000.0


class Waiting:
    """A model whose keys are all taken: waits until the call's deadline, by a clock that is so many seconds fast."""

    def __init__(self, early: float):
        self.now = NOW
        self._early = early

    async def ask(self, *, deadline_seconds: float, **_: Any) -> Any:
        self.now += deadline_seconds - self._early
        raise NoKeyAvailableError("no key was free", None)


def waited(left: float, early: float) -> str | None:
    """Judge a task with so many seconds left; return the class of its row's error."""
    model: Any = Waiting(early)
    judge = Judge(Settings(), "run", lambda: model.now)
    task = pending(0, deadline=NOW + left)
    assert asyncio.run(judge.judge(model, task)) is False
    assert task.row is not None
    assert task.row.assessed_at.timestamp() >= task.deadline
    return task.row.error_class


@pytest.mark.parametrize("early", [0.0, 0.128])
def test_a_task_that_waited_for_a_key_until_its_deadline_is_expired_and_no_outage(early: float) -> None:
    assert waited(1.0, early) == EXPIRED


def test_a_call_that_failed_while_the_task_had_time_is_the_providers_trouble() -> None:
    with pytest.raises(NoKeyAvailableError):
        waited(50.0, early=10.0)
