"""Services are started again, bounded, and nothing of them is left however their supervisor ends."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.servers.dev import is_running, until
from vectorize_pipelines.supervision import Service, ServiceError, Supervisor, guardian
from vectorize_pipelines.supervision.services import RunningService

pytestmark = pytest.mark.slow

#: Each service writes its process id, and that of a child, which ends only when it is told to.
SERVICE = """
import os, pathlib, signal, subprocess, sys, time
folder, name, *options = sys.argv[1:]
if {"stubborn", "orphan"} & set(options):  # the child inherits it
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "helper"])
if "orphan" in options:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
with (pathlib.Path(folder) / f"{name}.pids").open("a") as file:
    print(os.getpid(), child.pid, file=file)
if "brief" in options:
    sys.exit(7)
time.sleep(600)
"""
SUPERVISOR = """
import fcntl, json, os, sys
from pathlib import Path
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.supervision import Service, Supervisor, guardian
send = guardian.send
def noted(group, number):
    with (Path(sys.argv[1]) / "sent").open("a") as file:
        print(group, number.name, file=file)
    send(group, number)
guardian.send = noted
folder, script = Path(sys.argv[1]), sys.argv[2]
services = [
    Service(
        name,
        [sys.executable, script, str(folder), name, *options],
        child=("helper",) if "child" in options else (),
        ready=lambda name=name: (folder / f"{name}.pids").exists(),
    )
    for name, options in json.loads(sys.argv[3])
]
scratch = folder / "scratch"
scratch.mkdir()
lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
try:
    status = Supervisor(services, scratch, held=(lock,), grace_seconds=float(sys.argv[4])).run()
except VectorizeError as error:
    sys.exit(f"error: {error}")
sys.exit(status)
"""


@dataclass
class Supervised:
    """A supervisor in a process of its own, with its services."""

    folder: Path
    process: subprocess.Popen[str]
    seen: list[psutil.Process] = field(default_factory=list)

    def pids(self, name: str) -> list[list[int]]:
        """The service's process and its child, of each start."""
        return pids_of(self.folder, name)

    def started(self, name: str, times: int = 1) -> list[int]:
        """Wait until the service has been started so many times; its process and its child."""
        until(f"start {times} of {name}", lambda: len(self.pids(name)) >= times or self.process.poll() is not None)
        assert len(self.pids(name)) >= times, self.output()
        pids = self.pids(name)[times - 1]
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                self.seen.append(psutil.Process(pid))
        return pids

    def guardian(self) -> psutil.Process:
        """The process that ends everything."""

        def look() -> psutil.Process | None:
            children = psutil.Process(self.process.pid).children()
            return next(
                (one for one in children if is_running(one) and one.cmdline()[3:4] == [guardian.__file__]), None
            )

        found: psutil.Process = until("the guardian", look)
        return found

    def output(self) -> str:
        """What the supervisor wrote, once nobody can write to its output any more."""
        _, errors = self.process.communicate(timeout=60)
        return errors

    def assert_nothing_is_left(self, seconds: float = 30) -> None:
        """Neither processes, nor the folder, nor the lock."""
        until("the end of all processes", lambda: not any(map(is_running, self.seen)), seconds)
        until("the folder's end", lambda: not (self.folder / "scratch").exists(), seconds)
        until("the lock", self._is_unlocked, seconds)

    def _is_unlocked(self) -> bool:
        with (self.folder / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True


def pids_of(folder: Path, name: str) -> list[list[int]]:
    """The service's process and its child, of each start."""
    file = folder / f"{name}.pids"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [[int(pid) for pid in line.split()] for line in lines if line.endswith("\n")]


@contextmanager
def supervising(folder: Path, grace_seconds: float = 2.0, **services: list[str]) -> Iterator[Supervised]:
    """Services by name, with options of the script above, or `child`: they are useless without their child."""
    script = folder / "service.py"
    script.write_text(SERVICE)
    arguments = [str(folder), str(script), json.dumps(list(services.items())), str(grace_seconds)]
    process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, *arguments], stderr=subprocess.PIPE, text=True)
    supervised = Supervised(folder, process)
    try:
        yield supervised
    finally:
        process.kill()
        for one in supervised.seen:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.communicate()


def test_a_killed_service_is_started_again(tmp_path: Path) -> None:
    with supervising(tmp_path, first=[], second=[]) as supervised:
        supervised.started("second")
        pid, child = supervised.started("first")
        os.kill(pid, signal.SIGKILL)
        again, _ = supervised.started("first", 2)
        assert again != pid
        assert psutil.pid_exists(child)  # what a service had started may go on
        assert len(supervised.pids("second")) == 1
        supervised.process.send_signal(signal.SIGTERM)
        said = supervised.output()
        assert supervised.process.returncode == 0
        assert said == f"the first (process {pid}) was ended by SIGKILL; it is started again\n"
        supervised.assert_nothing_is_left()


def test_a_service_whose_child_is_killed_does_not_count_as_running(tmp_path: Path) -> None:
    script = tmp_path / "service.py"
    script.write_text(SERVICE)
    running = RunningService(Service("only", [sys.executable, str(script), str(tmp_path), "only"], child=("helper",)))
    ((pid, child),) = until("its start", lambda: pids_of(tmp_path, "only"))
    assert running.ending() is None
    os.kill(child, signal.SIGKILL)
    assert until("the end", running.ending) == "lost its process `helper`"
    assert running.pid == pid
    assert not psutil.pid_exists(pid)


def test_a_service_that_ends_again_and_again_ends_everything(tmp_path: Path) -> None:
    with supervising(tmp_path, lasting=[], failing=["brief"]) as supervised:
        supervised.started("lasting")
        for times in range(1, 5):
            supervised.started("failing", times)
        said = supervised.output()
        assert supervised.process.returncode == 1
        assert said.count("ended with exit code 7; it is started again") == 3
        pid = supervised.pids("failing")[3][0]
        assert f"error: the failing (process {pid}) ended with exit code 7, after it was started again 3 times" in said
        assert len(supervised.pids("failing")) == 4
        supervised.assert_nothing_is_left()


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with supervising(tmp_path, first=[], stubborn=["stubborn"]) as supervised:
        pid, _ = supervised.started("first")
        os.kill(pid, signal.SIGKILL)
        supervised.started("first", 2)
        supervised.started("stubborn")
        supervised.process.kill()
        supervised.assert_nothing_is_left()


def test_a_killed_guardian_has_a_successor(tmp_path: Path) -> None:
    with supervising(tmp_path, first=[], second=[]) as supervised:
        supervised.started("first")
        supervised.started("second")
        former = supervised.guardian()
        former.kill()
        until("a successor", lambda: supervised.guardian() != former)
        supervised.process.kill()
        supervised.assert_nothing_is_left()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
def test_a_second_signal_does_not_wait(tmp_path: Path, number: signal.Signals, status: int) -> None:
    with supervising(tmp_path, grace_seconds=3600, stubborn=["stubborn"], last=[]) as supervised:
        stubborn, _ = supervised.started("stubborn")
        last = psutil.Process(supervised.started("last")[0])
        supervised.process.send_signal(number)
        until("the end of what ends by itself", lambda: not is_running(last))
        supervised.process.send_signal(number)
        supervised.output()
        assert supervised.process.returncode == status
        supervised.assert_nothing_is_left()
        assert (str(stubborn), "SIGKILL") in sent_signals(tmp_path)


def test_a_group_that_is_gone_gets_no_signal(tmp_path: Path) -> None:
    """Its number may be that of somebody else's by then. A group of which only the leader is gone does."""
    with supervising(tmp_path, grace_seconds=3600, gone=[], orphaned=["orphan"]) as supervised:
        gone, child = supervised.started("gone")
        orphaned, _ = supervised.started("orphaned")
        supervised.process.send_signal(signal.SIGTERM)
        until("the end of the orphan's leader", lambda: not psutil.pid_exists(orphaned))
        os.kill(gone, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        until("the end of the group", lambda: not guardian.existing([gone]))
        supervised.process.send_signal(signal.SIGTERM)
        supervised.output()
        assert set(sent_signals(tmp_path)) == {(str(orphaned), "SIGKILL")}
        supervised.assert_nothing_is_left()


GUARDIAN = """
import sys
from pathlib import Path
from vectorize_pipelines.supervision import guardian
send = guardian.send
def noted(group, number):
    with (Path(sys.argv[1]) / "sent").open("a") as file:
        print(group, number.name, file=file)
    send(group, number)
guardian.send = noted
guardian.main(float(sys.argv[2]), sys.argv[1] + "/scratch", [int(group) for group in sys.argv[3:]])
"""


def test_the_guardian_sends_nothing_to_a_group_that_went_before_its_turn(tmp_path: Path) -> None:
    script = tmp_path / "service.py"
    script.write_text(SERVICE)
    names = ("before", "meanwhile", "stubborn")
    services = [
        RunningService(Service(name, [sys.executable, str(script), str(tmp_path), name, name])) for name in names
    ]
    before, meanwhile, stubborn = services
    try:
        for name in names:
            until(f"start of {name}", partial(pids_of, tmp_path, name))
        pids = {name: pids_of(tmp_path, name)[0] for name in names}
        for pid in pids["before"]:
            os.kill(pid, signal.SIGKILL)
        until("the end of the first", lambda: before.reap() is not None and not guardian.existing([before.pid]))
        groups = [str(service.pid) for service in services]
        command = [sys.executable, "-c", GUARDIAN, str(tmp_path), "3600", *groups]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as it:
            assert it.stdin is not None
            it.stdin.close()
            until("the first signal", lambda: sent_signals(tmp_path))
            for pid in pids["meanwhile"]:
                os.kill(pid, signal.SIGKILL)
            until("the end", lambda: meanwhile.reap() is not None and not guardian.existing([meanwhile.pid]))
            for pid in pids["stubborn"]:
                os.kill(pid, signal.SIGKILL)
            until("the end", lambda: stubborn.reap() is not None and it.poll() is not None)
        assert sent_signals(tmp_path) == [(str(stubborn.pid), "SIGTERM")]
    finally:
        for service in services:
            if service.reap() is None:
                guardian.send(service.pid, signal.SIGKILL)
            until("the end", partial(has_ended, service))


def has_ended(service: RunningService) -> bool:
    """Whether the process of a service is no more."""
    return service.reap() is not None


def sent_signals(folder: Path) -> list[tuple[str, str]]:
    """Groups and the signals that were sent to them, in order."""
    file = folder / "sent"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [(line.split()[0], line.split()[1]) for line in lines if line.endswith("\n")]


def test_a_service_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(ServiceError, match=r"the missing one cannot be started: .*no-such-program"):
        Supervisor([Service("missing one", ["/no-such-program"])], scratch).run()
    assert not scratch.exists()
