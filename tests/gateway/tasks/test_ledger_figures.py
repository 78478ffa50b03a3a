"""Figures over the whole ledger: exact where that is quick, never older than they are worth, one look at a time."""

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from tests.state.rows import row
from vectorize_pipelines.core.daemon_threads import DaemonThreads
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.gateway.tasks import ledger_figures
from vectorize_pipelines.gateway.tasks.ledger_figures import AGE_FACTOR, GRACE_SECONDS, LedgerFigures, Remembered
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.ledger import RequestLedger

SECONDS = 30.0


class Counting:
    """A look that takes so many seconds by a clock of its own, and counts itself."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.looks = 0
        self.looked = threading.Semaphore(0)

    def clock(self) -> float:
        return self.now

    def look(self) -> int:
        self.looks += 1
        self.now += self.seconds
        self.looked.release()
        return self.looks


@pytest.fixture
def threads() -> Iterator[DaemonThreads]:
    made = DaemonThreads(1, "figures")
    yield made
    made.close()


def never(value: object) -> bool:
    return False


def test_what_is_quick_is_as_it_is_now(threads: DaemonThreads) -> None:
    counting = Counting(1.0)
    value = Remembered(counting.look, lambda looks: looks < 4, threads, counting.clock)
    assert [value.get() for _ in range(5)] == [1, 2, 3, 4, 4]


def test_what_takes_long_is_kept_for_a_while_and_then_found_again_by_another(threads: DaemonThreads) -> None:
    counting = Counting(1.0)
    value = Remembered(counting.look, never, threads, counting.clock)
    assert value.get() == 1
    assert counting.looked.acquire(timeout=SECONDS)
    counting.now = AGE_FACTOR - 0.5
    assert value.get() == 1
    assert counting.looks == 1
    counting.now = AGE_FACTOR + 0.5
    assert value.get() == 1, "whoever asks does not wait"
    assert counting.looked.acquire(timeout=SECONDS), "it is found again"
    threads.submit(lambda: None).result(SECONDS)  # there is one thread: it has ended what it did before
    assert value.get() == 2


def test_what_nobody_asked_for_in_a_long_time_is_waited_for(threads: DaemonThreads) -> None:
    counting = Counting(1.0)
    value = Remembered(counting.look, never, threads, counting.clock)
    assert value.get() == 1
    counting.now = 1e6
    assert value.get() > 1


def test_many_that_ask_at_once_wait_for_one_look(threads: DaemonThreads) -> None:
    begun, go = threading.Event(), threading.Event()
    looks: list[int] = []

    def look() -> int:
        begun.set()
        assert go.wait(SECONDS)
        looks.append(len(looks) + 1)
        return looks[-1]

    now = iter(range(10_000))
    asking = threading.Lock()

    def clock() -> float:
        with asking:
            return float(next(now))

    value = Remembered(look, never, threads, clock)
    found: list[int] = []
    callers = [threading.Thread(target=lambda: found.append(value.get())) for _ in range(8)]
    callers[0].start()
    assert begun.wait(SECONDS)
    for each in callers[1:]:
        each.start()
    go.set()
    for each in callers:
        each.join(SECONDS)
    assert len(found) == 8
    assert len(looks) <= 2, "those that asked after it had begun share the next one"


def test_an_error_is_told_to_who_waits_and_spares_who_does_not(threads: DaemonThreads) -> None:
    counting = Counting(1.0)
    broken = False

    def look() -> int:
        if broken:
            counting.looked.release()
            raise LedgerError("the database is away")
        return counting.look()

    value = Remembered(look, never, threads, counting.clock)
    assert value.get() == 1
    assert counting.looked.acquire(timeout=SECONDS)
    broken = True
    counting.now = AGE_FACTOR + 1
    assert value.get() == 1
    assert counting.looked.acquire(timeout=SECONDS)
    threads.submit(lambda: None).result(SECONDS)
    counting.now = AGE_FACTOR + GRACE_SECONDS + 2
    with pytest.raises(LedgerError, match="away"):
        value.get()
    broken = False
    assert value.get() >= 2


# ---- of a real ledger


@pytest.fixture
def ledger(settings: Settings) -> Iterator[RequestLedger]:
    with closing(RequestLedger.open(settings)) as opened:
        yield opened


@pytest.fixture
def figures(ledger: RequestLedger) -> Iterator[LedgerFigures]:
    with closing(LedgerFigures(ledger)) as made:
        yield made


def test_counts(ledger: RequestLedger, figures: LedgerFigures) -> None:
    assert figures.counts() == dict.fromkeys(RequestState, 0)
    ledger.record([replace(row("a", RequestState.FAILED), task_type="x"), row("b"), replace(row("c"), task_type="y")])
    assert {state: number for state, number in figures.counts().items() if number} == {
        RequestState.COMPLETED: 2,
        RequestState.FAILED: 1,
    }
    assert figures.counts("x")[RequestState.FAILED] == 1
    assert sum(figures.counts("z").values()) == 0


def test_estimates(ledger: RequestLedger, figures: LedgerFigures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four requests a second."""
    waiting = [replace(row(f"w{n}", RequestState.PENDING, submitted=n), task_type="x") for n in range(8)]
    ledger.record(waiting)
    assert figures.seconds_until_done(waiting[7]) is None
    assert figures.seconds_behind_all(Modality.TEXT, "x") is None
    ledger.record([row(f"d{n}", submitted=n / 4, finished=(n + 1) / 4) for n in range(20)])
    assert figures.seconds_until_done(waiting[0]) == 0.2
    assert figures.seconds_until_done(waiting[7]) == 2.0
    assert figures.seconds_behind_all(Modality.TEXT, "x") == 2.2
    assert figures.seconds_behind_all(Modality.IMAGE, "x") is None
    monkeypatch.setattr(ledger_figures, "MOST_COUNTED", 2)
    assert figures.seconds_until_done(waiting[1]) == 0.5, "few enough to be counted"
    assert figures.seconds_until_done(waiting[3]) == 2.0, "all that wait"
