"""What happens to the machines of a site, and how long each time until the work of a lost run went on elsewhere.

Used by `chaos.py`.
"""

import heapq
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

import dagster as dg

from tests.machines.site import Site, WorkerMachine
from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.runs.tags import SHARD_TAG
from vectorize_pipelines.state.request_rows import RequestRow

Kind: TypeAlias = Literal["killed", "stalled", "cut off"]
KINDS: Sequence[Kind] = ("killed", "stalled", "cut off")
Restart: TypeAlias = Literal["Redis", "PostgreSQL", "Kafka"]
RESTARTS: Sequence[Restart] = ("Redis", "PostgreSQL", "Kafka")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: from one fault to the next, and how long a machine is away after each kind.

    A machine that was killed is started again as a service manager does it.
    """

    every: float = 20.0
    killed: float = 5.0
    stalled: float = 60.0
    cut_off: float = 40.0

    def away(self, kind: Kind) -> float:
        """How long a machine is away."""
        return {"killed": self.killed, "stalled": self.stalled, "cut off": self.cut_off}[kind]


@dataclass(frozen=True, slots=True)
class Fault:
    """What happened to a machine, when (seconds since 1970), and the runs that it executed."""

    kind: Kind
    machine: str
    at: float
    run_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Loss:
    """A run that a fault has met. `seconds`: until its work went on in another run; None: nothing of it was left."""

    fault: Fault
    run: dg.DagsterRun
    seconds: float | None
    successor: str

    def __str__(self) -> str:
        what = f"{self.run.job_name} {self.run.tags.get(SHARD_TAG, '')}"
        after = "-" if self.seconds is None else f"{self.seconds:.1f}"
        moment = time.strftime("%H:%M:%S", time.localtime(self.fault.at))
        return f"{moment}  {self.fault.machine:<12}{self.fault.kind:<10}{what:<20}{after:>8}  {self.successor}"


@dataclass
class Disturbance:
    """Strikes one machine after another, and restarts each server once. `faults`: what has happened."""

    site: Site
    chance: random.Random
    timing: Timing
    faults: list[Fault] = field(default_factory=list)
    _due: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _away: set[str] = field(default_factory=set)

    def work(self, number: int) -> None:
        """Strike so often, each kind in turn; return when all machines are back."""
        began = time.monotonic()
        first = self.chance.randrange(len(KINDS))
        for n in range(number):
            kind = KINDS[(first + n) % len(KINDS)]
            self._at(began + n * self.timing.every, partial(self._strike, kind))
        for n, server in enumerate(self.chance.sample(RESTARTS, len(RESTARTS))):
            place = (n + 1) * number / (len(RESTARTS) + 1) - 0.5
            self._at(began + place * self.timing.every, partial(self._restart, server))
        while self._due:
            at, _, action = heapq.heappop(self._due)
            time.sleep(max(0.0, at - time.monotonic()))
            action()

    def _at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (moment, next(self._numbers), action))

    def _strike(self, kind: Kind) -> None:
        """Strike a machine that is there, rather one that executes something."""
        here = [each for each in self.site.workers if each.name not in self._away]
        for each in here:
            each.check_alive()
        busy = [each for each in here if self._runs_on(each)]
        victim = self.chance.choice(busy or here)
        fault = Fault(kind, victim.name, time.time(), self._runs_on(victim))
        _STRIKES[kind](victim)
        self._away.add(victim.name)
        self.faults.append(fault)
        self._say(f"{victim.name} is {kind}, with {len(fault.run_ids)} runs")
        self._at(time.monotonic() + self.timing.away(kind), partial(self._mend, kind, victim))

    def _runs_on(self, machine: WorkerMachine) -> list[str]:
        """Return the runs of a machine; not those that an earlier fault has met, whose leases have not lapsed yet."""
        met = {run_id for fault in self.faults for run_id in fault.run_ids}
        return [run_id for run_id in self.site.runs_on(machine) if run_id not in met]

    def _mend(self, kind: Kind, victim: WorkerMachine) -> None:
        _MENDS[kind](victim)
        self._away.discard(victim.name)
        self._say(f"{victim.name} is back")

    def _restart(self, server: Restart) -> None:
        """Redis and the broker as after a crash; PostgreSQL as for an upgrade."""
        if server == "Redis":
            self.site.redis.kill()
            self.site.redis.start()
        elif server == "PostgreSQL":
            self.site.database.stop()
            self.site.database.start()
        else:
            self.site.broker.kill()
            self.site.broker.start()
        self._say(f"{server} was started again")

    @staticmethod
    def _say(what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {what}", flush=True)


_STRIKES: dict[Kind, Callable[[WorkerMachine], None]] = {
    "killed": lambda each: each.kill(),
    "stalled": lambda each: each.machine.stall(),
    "cut off": lambda each: each.machine.cut_off(),
}
_MENDS: dict[Kind, Callable[[WorkerMachine], None]] = {
    "killed": lambda each: each.start(),
    "stalled": lambda each: each.machine.go_on(),
    "cut off": lambda each: each.machine.join(),
}


def losses(instance: dg.DagsterInstance, faults: Sequence[Fault], ledger: Sequence[RequestRow]) -> list[Loss]:
    """Return what each fault has cost: how long nobody did the work of a run that it has met.

    Work goes on with the first result of the run that took it over, by the ledger; where that had none, as those over
    files have, with its beginning.
    """
    records = sorted(instance.get_run_records(), key=lambda each: each.start_time or float("inf"))
    by_id = {each.dagster_run.run_id: each for each in records}
    first_results: dict[str, float] = {}
    for row in ledger:
        if row.run_id is not None and row.finished_at is not None:
            at = row.finished_at.timestamp()
            first_results[row.run_id] = min(first_results.get(row.run_id, at), at)
    found = []
    for fault in faults:
        for run_id in fault.run_ids:
            lost = by_id[run_id]
            if lost.end_time is not None and lost.end_time < fault.at:
                continue  # it was just ending
            following = next((each for each in records if _goes_on(lost, each, fault.at)), None)
            if following is None:
                found.append(Loss(fault, lost.dagster_run, None, "nothing was left"))
                continue
            successor = following.dagster_run
            began = following.start_time or float("inf")
            seconds = max(began, first_results.get(successor.run_id, began)) - fault.at
            found.append(Loss(fault, lost.dagster_run, seconds, f"run {successor.run_id[:8]}"))
    return found


def _goes_on(lost: dg.RunRecord, other: dg.RunRecord, after: float) -> bool:
    """Return whether a run does what one that was lost did."""
    mine, others = lost.dagster_run, other.dagster_run
    if mine.job_name != others.job_name or other.start_time is None or other.start_time <= after:
        return False
    shards = [Shard.parse(run.tags.get(SHARD_TAG, str(WHOLE))) for run in (mine, others)]
    return shards[0].overlaps(shards[1])
