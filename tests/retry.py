"""The tests in CI: what failed is tried once more, alone.

    python -m tests.retry [ARGUMENTS OF PYTEST]

A test that fails beside others and passes alone in a process of its own is flaky: it is named with both outcomes, and
more than `MOST_FLAKY` of them fail the run. A test that fails twice fails it, and so does at once whatever is no failed
test: an error while tests are collected or after a test, when its fixtures end (a module's fixtures end with its last
test, which would pass alone), a process that died under a test, a session that did not end or ended before all that
was collected had run, no tests at all. All of it has `OVERALL_SECONDS`: a test that is stuck in C never sees a limit of
its own. Where CI is not `true`, nothing is tried again: the exit status is pytest's.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import pytest

#: Flaky tests of a run; one more fails it.
MOST_FLAKY = 2
#: Failed tests that are tried again; of more, none is: that is no chance.
MOST_TRIED_AGAIN = 10
#: For all sessions of a run together.
OVERALL_SECONDS = 70 * 60.0
#: For one test alone, on top of its own limit of time: its servers have to start.
ALONE_SECONDS = 1800.0
_OPTION = "--outcomes"
#: Set for a session and inherited by its servers, some of which outlive the process that started them.
_MARK = "TESTS_SESSION"
#: A process that hangs in the kernel does not die.
_KILL_SECONDS = 30.0
_MOST_NAMED = 10
_MESSAGE_CHARACTERS = 200


@dataclass
class Outcomes:
    """What came of a session of pytest: nodes that failed -> why, how many tests passed, and what else went wrong."""

    status: int
    failed: dict[str, str] = field(default_factory=dict)
    passed: int = 0
    broken: list[str] = field(default_factory=list)


class Recorder:
    """A plugin of pytest: it writes the outcomes to a file when the session ends."""

    def __init__(self, file: Path):
        self._file = file
        self._outcomes = Outcomes(-1)
        self._collected: set[str] = set()
        self._finished: Counter[str] = Counter()
        self._running: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._collected.update(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self._collected.update(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running.add(nodeid)
        self._keep_running()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._running.discard(nodeid)
        self._keep_running()

    def _keep_running(self) -> None:
        """Write it at once: it is read when the session has been killed."""
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps(sorted(self._running)))
        draft.replace(_running_file(self._file))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self._finished[report.nodeid] += 1
        if report.failed and report.when == "teardown":
            self._outcomes.broken.append(f"{report.nodeid} failed with {_message(report)} (teardown)")
        elif report.failed:
            self._outcomes.failed.setdefault(report.nodeid, f"{_message(report)} ({report.when})")
        elif report.when == "call" and report.passed:
            self._outcomes.passed += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._outcomes.broken.append(f"{report.nodeid} cannot be collected: {_message(report)}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        self._outcomes.broken.append(f"the process that ran {crashitem} died")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, error: object) -> None:
        if error:
            self._outcomes.broken.append(f"a process that ran tests died: {error}")

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._outcomes.status = int(exitstatus)
        if left_out := self._collected - self._finished.keys():
            of = f"{len(left_out)} of {len(self._collected)} tests"
            self._outcomes.broken.append(f"{of} were collected and did not run to their end: {_names(left_out)}")
        if again := {node for node, times in self._finished.items() if times > 1}:
            self._outcomes.broken.append(f"tests ran more than once: {_names(again)}")
        self._file.write_text(json.dumps(asdict(self._outcomes)))


def _running_file(outcomes: Path) -> Path:
    """Where a session keeps the names of the tests that are running, for the case that it does not end."""
    return outcomes.with_suffix(".running")


def _names(nodes: set[str]) -> str:
    """The first of them in one line."""
    return ", ".join([*sorted(nodes)[:_MOST_NAMED], *(["…"] if len(nodes) > _MOST_NAMED else [])])


def _message(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The error in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return " ".join(text.split())[:_MESSAGE_CHARACTERS]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(_OPTION, type=Path, help="file for what came of the tests, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    file: Path | None = config.getoption(_OPTION)
    if file is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(file.absolute()), "outcomes")


def run(arguments: Sequence[str], seconds: float) -> Outcomes:
    """Run pytest in a process of its own. A session that does not end in order, or within `seconds`, is broken."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes.json"
        command = [sys.executable, "-m", "pytest", "-p", "tests.retry", f"{_OPTION}={file}", *arguments]
        mark = uuid.uuid4().hex
        with subprocess.Popen(command, env={**os.environ, _MARK: mark}) as session:
            try:
                status = session.wait(seconds)
            except subprocess.TimeoutExpired:
                _end(session, mark)
                kept = _running_file(file)
                running = _names(set(json.loads(kept.read_text()))) if kept.exists() else ""
                late = f"the session did not end within {seconds:.0f} seconds"
                return Outcomes(-1, broken=[f"{late}; running: {running or 'no test'}"])
        if not file.exists():
            return Outcomes(status, broken=[f"the session ended with {status} before its time"])
        outcomes = Outcomes(**json.loads(file.read_text()))
    if outcomes.status != status:
        outcomes.broken.append(f"the session ended with {status} after its tests had ended with {outcomes.status}")
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        outcomes.broken.append(f"the session ended with {status}")
    if status == pytest.ExitCode.TESTS_FAILED and not outcomes.failed and not outcomes.broken:
        outcomes.broken.append("the session failed, but no test did")
    return outcomes


def _end(session: "subprocess.Popen[bytes]", mark: str) -> None:
    """Kill it with all that it has started, and what these start meanwhile."""
    found = [psutil.Process(session.pid), *psutil.Process(session.pid).children(recursive=True)]
    deadline = time.monotonic() + _KILL_SECONDS
    while found and time.monotonic() < deadline:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)
        found = _marked(mark)
    if found:
        print(f"processes that cannot be killed: {sorted(process.pid for process in found)}", flush=True)


def _marked(mark: str) -> list[psutil.Process]:
    """The living processes that have a session's mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(_MARK) == mark:
                found.append(process)
    return found


def try_again(failed: dict[str, str], deadline: float) -> bool:
    """Run each test that failed alone and say what came of it. Returns whether all of it was chance."""
    flaky, lasting = 0, 0
    for node, first in failed.items():
        print(f"\n{node} failed; once more, alone", flush=True)
        again = run(["-p", "no:cacheprovider", "-p", "no:xdist", node], min(ALONE_SECONDS, _left(deadline)))
        if not again.failed and not again.broken and again.passed == 1:
            flaky += 1
            print(f"FLAKY {node}: failed with {first}, then passed", flush=True)
            continue
        lasting += 1
        second = "; ".join([*again.failed.values(), *again.broken]) or "it did not run"
        print(f"FAILED TWICE {node}: failed with {first}, then with {second}", flush=True)
    if flaky > MOST_FLAKY:
        print(f"{flaky} tests are flaky, which is more than {MOST_FLAKY}", flush=True)
    return lasting == 0 and flaky <= MOST_FLAKY


def _left(deadline: float) -> float:
    """The seconds until then."""
    return max(0.0, deadline - time.monotonic())


def main(arguments: Sequence[str], seconds: float = OVERALL_SECONDS) -> int:
    """Run the tests; returns the exit status."""
    if os.environ.get("CI") != "true":
        return subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode
    deadline = time.monotonic() + seconds
    outcomes = run(arguments, _left(deadline))
    for reason in outcomes.broken:
        print(f"BROKEN {reason}", flush=True)
    if outcomes.broken:
        return max(outcomes.status, 1)
    if len(outcomes.failed) > MOST_TRIED_AGAIN:
        print(f"{len(outcomes.failed)} tests failed, which is more than chance: none is tried again", flush=True)
        return 1
    return 0 if try_again(outcomes.failed, deadline) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
