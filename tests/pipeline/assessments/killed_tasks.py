"""A run over detections in a process of its own, which dies at a given moment. Called by `test_task_runs`."""

import os
import signal
from collections.abc import Callable
from typing import Any

from vectorize_pipelines.kafka.transactions import TransactionalProducer
from vectorize_pipelines.pipeline.assessments.drain_request import DrainRequest
from vectorize_pipelines.pipeline.assessments.task_runs import open_task_drain
from vectorize_pipelines.settings import load_settings


def drain(method: str, number: int, before: bool) -> None:
    """Drain the topic; die before or after a method of `TransactionalProducer` is called for the `number`th time."""
    original: Callable[..., Any] = getattr(TransactionalProducer, method)
    calls = 0

    def hooked(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if before and calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(TransactionalProducer, method, hooked)
    with open_task_drain(load_settings(), DrainRequest("killed", once=True)) as run:
        run.run()
