"""What a run that drains is asked for: of detections (`task_runs`), and of the tasks made of them (`runs`)."""

from collections.abc import Callable
from dataclasses import dataclass

from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.pipeline.stop_policy import StopPolicy
from vectorize_pipelines.settings import DrainSettings


@dataclass(frozen=True, slots=True)
class DrainRequest:
    """The task of a run that drains: see `StopPolicy.of_drain`, which it has its last four fields from."""

    run_id: str
    shard: Shard = WHOLE
    once: bool = False
    idle_seconds: float | None = None
    max_seconds: float | None = None
    should_stop: Callable[[], str | None] = lambda: None

    def stop_policy(self, drain: DrainSettings) -> StopPolicy:
        """Return when the run ends, counted from now."""
        return StopPolicy.of_drain(
            drain,
            once=self.once,
            idle_seconds=self.idle_seconds,
            max_seconds=self.max_seconds,
            should_stop=self.should_stop,
        )
