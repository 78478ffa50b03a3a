"""Drain runs beside each other: which part of a topic is whose, who hands over, who gives way.

The sensors (`sensors/following.py`) decide how many runs a topic gets and say so by tags; a run reads its own tags once
a second (`DrainRun.reason_to_end`) and waits at its start until nobody else reads its part (`DrainRun.take_over`).
Should two runs read the same part all the same, the later one's Kafka producer fences the earlier one's.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self

import dagster as dg

from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.errors import SettingsError, VectorizeError
from vectorize_pipelines.kafka.followed import FollowedTopic
from vectorize_pipelines.runs.tags import (
    NEVER_BEGUN_TAG,
    RUNNING,
    SHARD_TAG,
    UNFINISHED,
    WIND_DOWN_TAG,
    drain_tags,
    topic_tags,
)

if TYPE_CHECKING:
    from vectorize_pipelines.compat import RunQueueConfig

#: How often a run looks at its tags, and at who waits.
LOOK_SECONDS = 1.0
#: So long a run goes on whoever waits: starting one and loading its model takes seconds.
BEFORE_GIVING_WAY_SECONDS = 60.0
#: A run that has been queued for so long is not just about to be launched.
QUEUED_SECONDS = 5.0
QUEUED_LOOKED_AT = 100
#: How long a run waits for one that reads the same part of the topic.
TAKE_OVER_SECONDS = 120.0


class OccupiedTopicError(VectorizeError):
    """Another run reads the same part of a topic, and does not end."""


class WoundDownError(VectorizeError):
    """The run was told to end before it had begun to read."""

    exit_code = 130


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A drain run that has not ended. `started` is 0 where it has not begun; `winding_down` says why it is to end."""

    run_id: str
    shard: Shard
    running: bool
    winding_down: str | None
    started: float

    @classmethod
    def of(cls, record: dg.RunRecord) -> Self:
        """The run of a record."""
        run = record.dagster_run
        try:
            shard = Shard.parse(run.tags.get(SHARD_TAG, str(WHOLE)))
        except SettingsError:
            shard = WHOLE  # of a tag that somebody wrote; the run itself fails
        return cls(
            run.run_id, shard, run.status in RUNNING, run.tags.get(WIND_DOWN_TAG), record.start_time or float("inf")
        )


def active_runs(instance: dg.DagsterInstance, followed: FollowedTopic) -> list[ActiveRun]:
    """The drain runs of a topic that have not ended."""
    filters = dg.RunsFilter(statuses=UNFINISHED, tags=topic_tags(followed))
    records = instance.get_run_records(filters)
    return [ActiveRun.of(record) for record in records]


def wind_down(instance: dg.DagsterInstance, runs: Sequence[ActiveRun], why: str) -> None:
    """Tell the runs to end soon, those that have not been told."""
    for run in runs:
        if run.winding_down is None:
            instance.add_run_tags(run.run_id, {WIND_DOWN_TAG: why})


def places(instance: dg.DagsterInstance, pool: str) -> int | None:
    """The number of a pool's runs that may go at the same time on this installation; None: any number."""
    limits = {each.name: each.limit for each in instance.event_log_storage.get_pool_limits()}
    return limits.get(pool, instance.get_concurrency_config().pool_config.default_pool_limit)


class DrainRun:
    """The run that this process executes, as seen by those beside it."""

    def __init__(self, instance: dg.DagsterInstance, run_id: str, followed: FollowedTopic, shard: Shard):
        self._instance = instance
        self._run_id = run_id
        self._followed = followed
        self._shard = shard
        self._begun = time.monotonic()
        self._looked = 0.0

    def take_over(self) -> None:
        """Tell earlier runs of the same part to wind down, and wait for their end.

        A run that was launched by hand gets the tags by which others see it. Raises `OccupiedTopicError`, and
        `WoundDownError` where this run itself has been told to end, by Ctrl-C between two tries for instance.
        """
        self._show_part()
        deadline = time.monotonic() + TAKE_OVER_SECONDS
        self._stay_unless_told()
        while earlier := self._earlier():
            self._stay_unless_told()
            wind_down(self._instance, earlier, f"handing over to run {self._run_id[:8]}, shard {self._shard}")
            if time.monotonic() > deadline:
                names = ", ".join(f"{run.run_id} (shard {run.shard})" for run in earlier)
                raise OccupiedTopicError(
                    f"run {names} has not ended within {TAKE_OVER_SECONDS:.0f} s and reads what this run, shard "
                    f"{self._shard}, is to read: terminate it, or wait until Dagster finds that its process is gone"
                )
            time.sleep(LOOK_SECONDS)

    def _show_part(self) -> None:
        own = self._instance.get_run_by_id(self._run_id)
        if own is None:
            raise WoundDownError("the run ended before it began: it has been deleted")
        tags = drain_tags(self._followed, self._shard)
        # Dagster writes a run as a whole: tags that somebody else adds at the same moment would be lost.
        if not tags.items() <= own.tags.items():
            self._instance.add_run_tags(self._run_id, tags)

    def _stay_unless_told(self) -> None:
        own = self._instance.get_run_by_id(self._run_id)
        if own is not None and WIND_DOWN_TAG in own.tags:
            self._instance.add_run_tags(self._run_id, {NEVER_BEGUN_TAG: "true"})
            raise WoundDownError(f"the run ended before it began: {own.tags[WIND_DOWN_TAG]}")

    def reason_to_end(self) -> str | None:
        """Return why the run is to end now, if it is; may be called often."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return None
        self._looked = now
        own = self._instance.get_run_by_id(self._run_id)
        if own is None:
            return "the run has been deleted"
        if own.is_finished:
            return f"the run has been marked as {own.status.value.lower()}"
        if WIND_DOWN_TAG in own.tags:
            return own.tags[WIND_DOWN_TAG]
        if now - self._begun >= BEFORE_GIVING_WAY_SECONDS:
            return self._waiting_for(own)
        return None

    def _earlier(self) -> list[ActiveRun]:
        active = active_runs(self._instance, self._followed)
        own = next((run for run in active if run.run_id == self._run_id), None)
        began = (own.started, own.run_id) if own is not None else (float("inf"), "")
        return [
            run
            for run in active
            if run.running and run.shard.overlaps(self._shard) and (run.started, run.run_id) < began
        ]

    def _waiting_for(self, own: dg.DagsterRun) -> str | None:
        """Return why the run gives way: another one is queued for a place that this one has."""
        before = datetime.now(UTC) - timedelta(seconds=QUEUED_SECONDS)
        queued = self._instance.get_runs(
            dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED], created_before=before), limit=QUEUED_LOOKED_AT
        )
        if not queued or not self._began_first():
            return None
        config = self._instance.get_concurrency_config().run_queue_config
        full = config is not None and 0 <= config.max_concurrent_runs <= self._running()
        for run in queued:
            if full or _shares_pool(own, run) or (config is not None and _shares_limit(own, run, config)):
                return f"giving way to run {run.run_id[:8]} ({run.job_name}), which is queued"
        return None

    def _began_first(self) -> bool:
        """One run makes room, not all of a topic's at once."""
        active = active_runs(self._instance, self._followed)
        running = [(run.started, run.run_id) for run in active if run.running]
        return not running or min(running)[1] == self._run_id

    def _running(self) -> int:
        return self._instance.get_runs_count(dg.RunsFilter(statuses=RUNNING))


def _pools(run: dg.DagsterRun) -> set[str]:
    return set(run.run_op_concurrency.all_pools or ()) if run.run_op_concurrency is not None else set()


def _shares_pool(own: dg.DagsterRun, other: dg.DagsterRun) -> bool:
    return bool(_pools(own) & _pools(other))


def _shares_limit(own: dg.DagsterRun, other: dg.DagsterRun, config: "RunQueueConfig") -> bool:
    """Return whether a limit on tags counts both runs."""
    for limit in config.tag_concurrency_limits or ():
        key, value = limit["key"], limit.get("value")
        mine, others = own.tags.get(key), other.tags.get(key)
        if mine is None or others is None:
            continue
        if isinstance(value, str):
            alike = mine == others == value
        else:
            alike = mine == others or not (value or {}).get("applyLimitPerUniqueValue")
        if alike:
            return True
    return False
