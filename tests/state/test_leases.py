"""Leases on SQLite and on PostgreSQL: one holder at a time, whatever becomes of it."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.servers.postgresql import Server
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state import leases
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.held_locks import ExclusiveLock, RunLostError, check_run
from vectorize_pipelines.state.leases import (
    Lease,
    LeaseLostError,
    LeaseTakenError,
    await_signs,
    hold,
    is_held,
    lapsed,
    purge,
)

#: Of leases that are to lapse; those that are not have the seconds of every installation.
SHORT_SECONDS = 2.5
LONG_SECONDS = 60.0


@pytest.fixture
def database(installation: Settings) -> Iterator[Database]:
    opened = Database.open(installation)
    yield opened
    opened.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", SHORT_SECONDS)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that last for long and are renewed all the time."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", LONG_SECONDS)
    monkeypatch.setattr(leases, "RENEWALS", 500)


class Holder:
    """A process that holds a lease."""

    def __init__(self, settings: Settings, name: str, seconds: float):
        url = settings.ledger.url.get_secret_value() if settings.ledger.url else ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.state.lease_holder", str(settings.home), url, name, str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        said, fence = self._said().split()
        assert said == "held"
        self.fence = int(fence)

    def check(self) -> str:
        """What it says to a check."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._said()

    def _said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")


@contextmanager
def holding(settings: Settings, name: str, seconds: float) -> Iterator[Holder]:
    holder = Holder(settings, name, seconds)
    try:
        yield holder
    finally:
        holder.process.kill()
        holder.process.communicate()


def test_one_holder_at_a_time(database: Database) -> None:
    assert not is_held(database, "a")
    with hold(database, "a", "collection a") as first:
        first.check()
        assert is_held(database, "a")
        with (
            pytest.raises(LeaseTakenError, match=r"another run has held the lock of collection a for 0\.05 s"),
            hold(database, "a", "collection a", timeout_seconds=0.05),
        ):
            raise AssertionError
        with hold(database, "b", "collection b", timeout_seconds=10) as other:
            other.check()
            first.check()
    assert not is_held(database, "a")
    with hold(database, "a", "collection a", timeout_seconds=10) as second:
        second.check()
    assert second.fence > first.fence
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(leases.leases)).scalar() == 0


def test_an_error_of_the_body_lets_go(database: Database) -> None:
    with pytest.raises(KeyError), hold(database, "a", "a"):
        raise KeyError
    assert not is_held(database, "a")


def test_an_interrupt_that_comes_as_soon_as_a_lease_is_kept_lets_go(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = leases._keeper_of(database)
    add = keeper.add

    def interrupted(lease: Lease) -> None:
        add(lease)
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupting:
        interrupting.setattr(keeper, "add", interrupted)
        with pytest.raises(KeyboardInterrupt), hold(database, "a", "a", whole_process=True):
            raise AssertionError
    assert not is_held(database, "a")
    check_run()


def test_a_lease_is_renewed_while_it_is_held(database: Database, often: None) -> None:
    with hold(database, "a", "a") as lease:
        for _ in range(2):
            await_signs(database, ["a"])
        with pytest.raises(LeaseTakenError), hold(database, "a", "a", timeout_seconds=0):
            raise AssertionError
        lease.check()


def test_who_waits_is_next(database: Database) -> None:
    """Whoever takes a lease again and again lets those in who wait for it."""
    turns: list[str] = []
    wanted = threading.Event()

    def wait() -> None:
        wanted.set()
        with hold(database, "a", "a", timeout_seconds=60):
            turns.append("waited")

    waiting = threading.Thread(target=wait)
    with hold(database, "a", "a"):
        waiting.start()
        wanted.wait(30)
        until(lambda: _row(database, "a")["waiter"] != "")
    with hold(database, "a", "a"):
        turns.append("again")
    waiting.join(60)
    assert turns == ["waited", "again"]


def test_a_killed_holder_is_followed_by_another_one(database: Database, installation: Settings) -> None:
    with holding(installation, "run/1", LONG_SECONDS) as holder:
        assert holder.check() == "held"
        assert lapsed(database, "run/") == []
        holder.process.kill()
        holder.process.wait()
        lapse(database, "run/1")
        (found,) = lapsed(database, "run/")
        assert (found.name, found.holder, found.node, found.fence) == (
            "run/1",
            "a process",
            "node-of-process",
            holder.fence,
        )
        assert lapsed(database, "run/1%") == lapsed(database, "collection/") == []
        assert not is_held(database, "run/1")
        with hold(database, "run/1", "run 1", timeout_seconds=30) as lease:
            assert lease.fence > holder.fence
            assert lapsed(database, "run/") == []


@pytest.mark.slow
def test_whether_a_holder_lives_is_known_in_time(database: Database, installation: Settings, often: None) -> None:
    with holding(installation, "dead", SHORT_SECONDS) as holder, hold(database, "alive", "alive"):
        holder.process.kill()
        await_signs(database, ["dead", "free", "alive"])
        assert not is_held(database, "dead")
        assert is_held(database, "alive")


def test_a_stalled_holder_finds_its_lease_taken(database: Database, installation: Settings) -> None:
    with holding(installation, "a", LONG_SECONDS) as holder:
        assert holder.check() == "held"
        holder.process.send_signal(signal.SIGSTOP)
        lapse(database, "a")
        with hold(database, "a", "a", timeout_seconds=60) as lease:
            holder.process.send_signal(signal.SIGCONT)
            assert holder.check().startswith("lost the lock of a was lost while it was needed: ")
            lease.check()
        assert holder.check().startswith("lost "), "what was lost stays so"


@pytest.mark.slow
def test_a_stalled_holder_whose_lease_nobody_took_has_lost_it(database: Database, installation: Settings) -> None:
    with holding(installation, "a", SHORT_SECONDS) as holder:
        holder.process.send_signal(signal.SIGSTOP)
        until(lambda: lapsed(database, "a") != [])
        holder.process.send_signal(signal.SIGCONT)
        assert holder.check().startswith("lost ")


def test_what_nobody_takes_over_is_removed(database: Database) -> None:
    with ending_lost(), hold(database, "run/1", "run 1") as lease, hold(database, "run/2", "run 2") as other:
        lapse(database, "run/1")
        assert purge(database, datetime.now(UTC) - timedelta(days=1)) == 1
        assert lapsed(database, "run/") == []
        other.check()
        with pytest.raises(LeaseLostError, match="the lock of run 1 was lost while it was needed: it had lapsed"):
            lease.check()
    assert lapsed(database, "run/") == []


def test_what_the_process_needs_is_checked_with_every_lock(database: Database) -> None:
    with hold(database, "a", "collection a") as lease:
        with ending_lost(), hold(database, "run/1", "run 1", whole_process=True):
            lease.check()
            ExclusiveLock().check()
            lapse(database, "run/1")
            for lock in (lease, ExclusiveLock()):
                with pytest.raises(RunLostError, match="the lock of run 1 was lost"):
                    lock.check()
            with pytest.raises(RunLostError):
                check_run()
        lease.check()
        check_run()


def test_what_is_lost_beside_a_run_is_not_the_run(database: Database) -> None:
    with hold(database, "run/1", "run 1", whole_process=True):
        with ending_lost(), hold(database, "a", "collection a") as lease:
            lapse(database, "a")
            with pytest.raises(LeaseLostError, match="the lock of collection a was lost") as lost:
                lease.check()
            assert not isinstance(lost.value, RunLostError)
        check_run()


def test_connections_that_are_ended_cost_no_lease(postgresql: Server, tmp_path: Path) -> None:
    database = Database.open(load_settings(home=tmp_path, ledger={"url": postgresql.url()}))
    end = sa.text("select count(pg_terminate_backend(pid)) from pg_stat_activity where pid <> pg_backend_pid()")
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    with hold(database, "a", "a") as lease:
        for _ in range(5):
            lease.check()
            with engine.connect() as connection:
                assert connection.execute(end).scalar()
        lease.check()
    database.close()


def test_a_restart_of_the_server_costs_no_lease(
    own_postgresql: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", LONG_SECONDS)
    database = Database.open(load_settings(home=tmp_path, ledger={"url": own_postgresql.url()}))
    with hold(database, "a", "a") as lease:
        lease.check()
        own_postgresql.stop()
        own_postgresql.start()
        lease.check()
        own_postgresql.stop()
        own_postgresql.start()
    database.close()


def test_a_server_that_stays_away_costs_the_lease(own_postgresql: Server, tmp_path: Path, short: None) -> None:
    database = Database.open(load_settings(home=tmp_path, ledger={"url": own_postgresql.url()}))
    with ending_lost(), hold(database, "a", "a") as lease:
        own_postgresql.stop()
        with pytest.raises(LeaseLostError, match="the lock of a was lost while it was needed: the database of req"):
            lease.check()
    database.close()


def test_a_server_that_is_silent_costs_the_lease(postgresql: Server, tmp_path: Path, short: None) -> None:
    """A machine that is cut off gets no error: nothing comes any more."""
    with Wire(postgresql.port) as wire:
        url = postgresql.url().replace(f":{postgresql.port}/", f":{wire.port}/")
        database = Database.open(load_settings(home=tmp_path, ledger={"url": url}))
        with ExitStack() as stack:
            lease = stack.enter_context(hold(database, "a", "a"))
            lease.check()
            wire.cut()
            with pytest.raises(LeaseLostError):
                lease.check()
            wire.mend()
            with pytest.raises(LeaseLostError):
                stack.close()
    database.close()


class Wire:
    """A port that is connected with another one, until it is cut: connections stay, and nothing comes through."""

    def __init__(self, target: int):
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._whole = threading.Event()
        self._whole.set()
        self._sockets: list[socket.socket] = [self._listener]

    def __enter__(self) -> "Wire":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._whole.set()
        for each in self._sockets:
            each.close()

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while content := source.recv(65536):
                self._whole.wait()
                sink.sendall(content)
        except OSError:
            return
        finally:
            sink.close()


class Takers(RuleBasedStateMachine):
    """Several take one lease, give it back, and lose it, in any order: one has it, and each a larger fence."""

    database: Database

    @initialize()
    def begin(self) -> None:
        self.stack, self.fence = ExitStack(), 0
        self.lease: Lease | None = None
        self.lost: list[tuple[ExitStack, Lease]] = []

    @rule()
    def take(self) -> None:
        stack = ExitStack()
        if self.lease is not None:
            with pytest.raises(LeaseTakenError):
                stack.enter_context(hold(self.database, "a", "a", timeout_seconds=0))
            return
        self.lease = stack.enter_context(hold(self.database, "a", "a", timeout_seconds=0))
        self.stack = stack
        assert self.lease.fence > self.fence
        self.fence = self.lease.fence

    @precondition(lambda self: self.lease is not None)
    @rule()
    def check(self) -> None:
        assert self.lease is not None
        self.lease.check()

    @precondition(lambda self: self.lease is not None)
    @rule()
    def give_back(self) -> None:
        self.stack.close()
        self.lease = None

    @precondition(lambda self: self.lease is not None)
    @rule()
    def lapse(self) -> None:
        assert self.lease is not None
        lapse(self.database, "a")
        self.lost.append((self.stack, self.lease))
        self.lease = None

    @precondition(lambda self: self.lost)
    @rule()
    def loser_checks(self) -> None:
        with pytest.raises(LeaseLostError):
            self.lost[-1][1].check()

    @precondition(lambda self: self.lost)
    @rule()
    def loser_gives_back(self) -> None:
        stack, _ = self.lost.pop()
        with pytest.raises(LeaseLostError):
            stack.close()

    def teardown(self) -> None:
        if self.lease is not None:
            self.stack.close()
        while self.lost:
            self.loser_gives_back()


def test_any_order_of_takers(database: Database) -> None:
    class Machine(Takers):
        pass

    Machine.database = database
    run_state_machine_as_test(
        Machine, settings=hypothesis_settings(max_examples=8, stateful_step_count=15, deadline=None)
    )


@contextmanager
def ending_lost() -> Iterator[None]:
    """What is held in the body has been lost at its end."""
    with pytest.raises(LeaseLostError):
        yield


def lapse(database: Database, name: str) -> None:
    """Have a lease lapse whose holder lives: as if the holder had been away."""
    with database.write() as connection:
        assert connection.execute(
            sa.update(leases.leases).where(leases.leases.c.name == name).values(expires_us=1)
        ).rowcount


def _row(database: Database, name: str) -> dict[str, object]:
    with database.read() as connection:
        return dict(connection.execute(sa.select(leases.leases).where(leases.leases.c.name == name)).mappings().one())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
