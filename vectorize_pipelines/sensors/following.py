"""Sensors for messages that wait in Kafka, one for each followed topic.

A tick waits for lag inside itself, looking ten times a second at offsets alone, so that a run is launched a moment
after a message has come, and not at the next interval. How many runs there are to be follows from the lag (`decide`).
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import dagster as dg

from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.jobs import StreamJob
from vectorize_pipelines.kafka.followed import FollowedTopic, followed_topic
from vectorize_pipelines.kafka.lag import LagWatch
from vectorize_pipelines.partitions import today
from vectorize_pipelines.runs.dead import close_dead_runs
from vectorize_pipelines.runs.drain import ActiveRun, active_runs, places, wind_down
from vectorize_pipelines.runs.tags import FINISHED, NEVER_BEGUN_TAG, drain_tags, topic_tags
from vectorize_pipelines.settings import KafkaSettings, Settings, load_settings

#: A tick may last 60 s. Dagster's daemon starts ticks every 5 s: this one is over just before it does, with time for
#: what a tick takes besides, so that messages which come between two ticks do not wait for 5 s.
TICK_SECONDS = 18.5
#: Between two looks while no run is active, and while one is.
LOOK_SECONDS = 0.1
ACTIVE_LOOK_SECONDS = 1.0
#: A tick says soon that the brokers are away.
REQUEST_SECONDS = 5.0
#: Lag has to ask for more runs for so long: a hand-over costs about as much, and a burst may be done by then.
PATIENCE_SECONDS = 10.0
#: After a run that failed, nothing is launched for a while: doubled each time, up to ten minutes.
FIRST_PAUSE_SECONDS = 15.0
LONGEST_PAUSE_SECONDS = 600.0
FAILURES_LOOKED_AT = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of the number of runs: lag per run, and the least of partitions, `kafka.drain.max_runs` and places."""

    lag_per_run: int
    runs: int

    def wanted(self, lag: int) -> int:
        """The number of runs for a lag."""
        return max(1, min(self.runs, math.ceil(lag / self.lag_per_run)))


@dataclass(frozen=True, slots=True)
class Launch:
    """Launch a run for each of the shards."""

    shards: Sequence[Shard]


@dataclass(frozen=True, slots=True)
class HandOver:
    """The active runs are too few: they are to end, and so many are to come after them."""

    count: int


@dataclass(frozen=True, slots=True)
class Wait:
    """A decision to do nothing, and why."""

    reason: str


Decision: TypeAlias = Launch | HandOver | Wait


def decide(lags: Mapping[int, int], active: Sequence[ActiveRun], limits: Limits) -> Decision:
    """Decide what to do about the lag of each Kafka partition, given the runs that have not ended.

    Runs of one layout (0/4 to 3/4) own disjoint parts, so a part without a run gets one. Another layout is launched
    only once every run of the present one has ended.
    """
    lag = sum(lags.values())
    if lag == 0:
        return Wait("Nothing waits.")
    if not active:
        count = limits.wanted(lag)
        return Launch([shard for shard in Shard.layout(count) if _lag_of(shard, lags)])
    counts = {run.shard.count for run in active}
    ending = [run for run in active if run.winding_down is not None]
    if ending or len(counts) > 1:
        return Wait(f"{lag} messages wait; {len(ending)} of {len(active)} runs are handing over.")
    (count,) = counts
    owned = {run.shard.index for run in active}
    orphaned = [shard for shard in Shard.layout(count) if shard.index not in owned and _lag_of(shard, lags)]
    if orphaned:
        return Launch(orphaned)
    if limits.wanted(lag) > count and all(run.running for run in active):
        return HandOver(limits.wanted(lag))
    return Wait(f"{lag} messages wait; {len(active)} of {count} runs are at work or queued.")


def _lag_of(shard: Shard, lags: Mapping[int, int]) -> int:
    return sum(lag for partition, lag in lags.items() if shard.owns(partition))


class _Watch:
    """One followed topic, looked at by its sensor's ticks.

    `launched_at`: how far it had been dealt with when runs were last launched, as a tick left it in its cursor.
    """

    def __init__(
        self, instance: dg.DagsterInstance, settings: Settings, wiring: StreamJob, launched_at: str | None = None
    ):
        self._instance = instance
        self._settings = settings
        self._kafka = settings.kafka
        self._wiring = wiring
        self._followed = followed_topic(settings.kafka, wiring.name)
        self._lag = _lag_watch(settings.kafka, self._followed)
        self._launched_at = int(launched_at) if launched_at and launched_at.isdecimal() else None
        self._committed = 0
        self._more_since: float | None = None

    def tick(self) -> dg.SensorResult | dg.SkipReason:
        """Look until there is something to launch, or the tick's time is over. Raises `KafkaError`."""
        deadline = time.monotonic() + TICK_SECONDS
        while True:
            decision, pause = self._look()
            if isinstance(decision, Launch):
                requests = [self._request(shard) for shard in decision.shards]
                return dg.SensorResult(run_requests=requests, cursor=str(self._committed))
            if time.monotonic() + pause >= deadline:
                return dg.SkipReason(decision.reason)
            time.sleep(pause)

    def _look(self) -> tuple[Launch | Wait, float]:
        """Look once: return what to do, and how long to wait for the next look."""
        lags: dict[int, int] = {}
        found = self._lag.look()
        self._committed = sum(each.committed or 0 for each in found)
        for each in found:
            lags[each.partition] = lags.get(each.partition, 0) + each.lag
        if not any(lags.values()):
            self._more_since = None
            return Wait("Nothing waits."), LOOK_SECONDS
        active = active_runs(self._instance, self._followed)
        if active and close_dead_runs(self._instance, self._settings):
            active = active_runs(self._instance, self._followed)
        decision = decide(lags, active, self._limits(len(lags)))
        if not isinstance(decision, HandOver):
            self._more_since = None
            if isinstance(decision, Launch):
                return self._unless_failing(decision), ACTIVE_LOOK_SECONDS
            return decision, ACTIVE_LOOK_SECONDS
        now = time.monotonic()
        self._more_since = self._more_since or now
        if now - self._more_since >= PATIENCE_SECONDS:
            wind_down(self._instance, active, f"handing over to {decision.count} runs")
        return Wait(f"{sum(lags.values())} messages wait and ask for {decision.count} runs."), ACTIVE_LOOK_SECONDS

    def _limits(self, partitions: int) -> Limits:
        drain = self._kafka.drain
        room = places(self._instance, self._wiring.pool)
        runs = min(partitions, drain.max_runs, *([] if room is None else [room]))
        return Limits(drain.target_lag_per_run, max(1, runs))

    def _request(self, shard: Shard) -> dg.RunRequest:
        """No run key: those of failed runs would keep the work from being tried again."""
        config = {"mode": "drain", "shard": str(shard)}
        return dg.RunRequest(
            partition_key=today(),
            run_config={"ops": {self._wiring.asset: {"config": config}}},
            tags=drain_tags(self._followed, shard),
        )

    def _unless_failing(self, launch: Launch) -> Launch | Wait:
        """Runs that failed after they had got somewhere are no reason to wait: messages that they die of go one by one.

        (Every few deaths one is set aside, and a topic may hold many.)
        """
        if self._launched_at is not None and self._committed > self._launched_at:
            return launch
        filters = dg.RunsFilter(statuses=FINISHED, tags=topic_tags(self._followed))
        last = self._instance.get_run_records(filters, limit=FAILURES_LOOKED_AT)
        failures = 0
        for record in last:
            run = record.dagster_run
            if NEVER_BEGUN_TAG in run.tags:
                continue
            if run.status is not dg.DagsterRunStatus.FAILURE:
                break
            failures += 1
        if not failures:
            return launch
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (failures - 1), LONGEST_PAUSE_SECONDS)
        left = (last[0].end_time or 0.0) + pause - time.time()
        if left <= 0:
            return launch
        return Wait(f"The last {failures} runs failed; the next try is in {left:.0f} s.")


#: Clients stay connected from tick to tick.
_lag_watches: dict[tuple[str, FollowedTopic], LagWatch] = {}


def _lag_watch(kafka: KafkaSettings, followed: FollowedTopic) -> LagWatch:
    key = (kafka.model_dump_json(), followed)
    if key not in _lag_watches:
        _lag_watches[key] = LagWatch(kafka, followed)
    return _lag_watches[key]


def lag_sensor(wiring: StreamJob, settings: Settings, waiting: str) -> dg.SensorDefinition:
    """Return the sensor that launches drain runs of a followed topic. `waiting`: its messages, in words."""
    configured = settings.kafka.bootstrap_servers is not None

    @dg.sensor(
        name=f"{wiring.name}_lag",
        job=wiring.job,
        minimum_interval_seconds=1 if configured else 60,
        description=f"Launches drain runs while {waiting} wait in Kafka. Reads no message.",
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def lag(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        """Say why nothing is launched, also where Kafka is not configured or away."""
        settings = load_settings()
        if settings.kafka.bootstrap_servers is None:
            return dg.SkipReason("Kafka is not configured: VECTORIZE_KAFKA__BOOTSTRAP_SERVERS is not set.")
        seconds = min(settings.kafka.request_seconds, REQUEST_SECONDS)
        kafka = settings.kafka.model_copy(update={"request_seconds": seconds})
        try:
            changed = settings.model_copy(update={"kafka": kafka})
            return _Watch(context.instance, changed, wiring, context.cursor).tick()
        except VectorizeError as error:
            return dg.SkipReason(str(error))

    return lag
