"""`tests.retry`: chance is forgiven twice, and nothing else is. Each case is a real session over files of its own."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.retry import MOST_FLAKY, MOST_TRIED_AGAIN, main

pytestmark = pytest.mark.slow

PASSES = "def test_passes():\n    pass\n"
FAILS = "def test_fails():\n    assert 1 == 2\n"
#: Fails the first time that it is run in its folder.
FLAKY = """
from pathlib import Path

def test_{name}():
    there = Path(__file__).with_suffix(".tried")
    if not there.exists():
        there.touch()
        {first}
"""


def flaky(name: str = "flaky", first: str = 'raise ValueError("the weather")') -> str:
    return FLAKY.format(name=name, first=first)


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str


@dataclass
class Retry:
    """Calls `tests.retry` in this process; its sessions have processes of their own, as ever."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]
    seconds: float = 240

    def __call__(self, *arguments: str, ci: str = "true", plugins: str = "", **files: str) -> Done:
        """Run the tests in the files by name, with these plugins of pytest alone."""
        self.prepare(ci, plugins, **files)
        code = main(["-q", "-p", "no:cacheprovider", *arguments], self.seconds)
        return Done(code, self.capfd.readouterr().out)

    def prepare(self, ci: str = "true", plugins: str = "", **files: str) -> None:
        (self.folder / "pytest.ini").write_text("[pytest]\n")
        for name, content in files.items():
            (self.folder / f"{name}.py").write_text(content)
        for name in list(os.environ):
            if name.startswith(("PYTEST_", "COV_")) and name != "PYTEST_CURRENT_TEST":
                self.monkeypatch.delenv(name)
        self.monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        self.monkeypatch.setenv("PYTEST_PLUGINS", plugins)
        self.monkeypatch.setenv("CI", ci)
        self.monkeypatch.chdir(self.folder)


@pytest.fixture
def retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Retry:
    return Retry(tmp_path, monkeypatch, capfd)


def test_what_passes_is_not_tried_again(retry: Retry) -> None:
    done = retry(test_one=PASSES)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert "once more" not in done.stdout


def test_a_flaky_test_is_forgiven_and_named_with_both_outcomes(retry: Retry) -> None:
    done = retry("-n1", plugins="xdist", test_one=flaky(), test_two=PASSES)
    assert done.returncode == 0, done.stdout
    assert "FLAKY test_one.py::test_flaky: failed with ValueError: the weather (call), then passed" in done.stdout


def test_a_fixture_that_fails_once_is_forgiven_too(retry: Retry) -> None:
    fixture = flaky("fixture").replace("\ndef test_fixture", "\nimport pytest\n\n@pytest.fixture\ndef thing")
    done = retry(test_one=fixture + "\ndef test_it(thing):\n    pass\n")
    assert done.returncode == 0, done.stdout
    assert "FLAKY test_one.py::test_it: failed with ValueError: the weather (setup), then passed" in done.stdout


def test_more_flaky_tests_than_are_forgiven_fail_the_run(retry: Retry) -> None:
    files = {f"test_{number}": flaky(f"number_{number}") for number in range(MOST_FLAKY + 1)}
    done = retry(**files)
    assert done.returncode == 1
    assert done.stdout.count("FLAKY test_") == MOST_FLAKY + 1
    assert f"{MOST_FLAKY + 1} tests are flaky, which is more than {MOST_FLAKY}" in done.stdout


def test_a_test_that_fails_twice_fails_the_run(retry: Retry) -> None:
    done = retry(test_one=FAILS, test_two=flaky())
    assert done.returncode == 1
    assert "FAILED TWICE test_one.py::test_fails: failed with assert 1 == 2 (call), then" in done.stdout
    assert "FLAKY test_two.py::test_flaky" in done.stdout


def test_a_test_that_is_left_out_the_second_time_has_not_passed(retry: Retry) -> None:
    skips = flaky("odd") + "    else:\n        import pytest\n        pytest.skip('not today')\n"
    done = retry(test_one=skips)
    assert done.returncode == 1
    assert "FAILED TWICE test_one.py::test_odd: failed with ValueError: the weather (call), then with" in done.stdout


def test_many_failures_are_no_chance(retry: Retry) -> None:
    each = f'@pytest.mark.parametrize("n", range({MOST_TRIED_AGAIN + 1}))'
    many = f"import pytest\n\n{each}\ndef test_n(n):\n    assert 0\n"
    done = retry(test_one=many)
    assert done.returncode == 1
    assert "none is tried again" in done.stdout
    assert "once more" not in done.stdout


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["one process", "xdist"])
def test_an_error_while_tests_are_collected_fails_the_run_at_once(retry: Retry, workers: tuple[str, ...]) -> None:
    done = retry(*workers, plugins="xdist", test_one="import nothing_of_that_name\n", test_two=flaky())
    assert done.returncode not in (0, -1)
    assert "BROKEN" in done.stdout
    assert "once more" not in done.stdout


def test_a_process_that_dies_under_a_test_fails_the_run_at_once(retry: Retry) -> None:
    done = retry("-n1", plugins="xdist", test_one=flaky("dies", "import os; os._exit(3)"), test_two=flaky())
    assert done.returncode == 1
    assert "BROKEN the process that ran test_one.py::test_dies died" in done.stdout
    assert "once more" not in done.stdout


def test_a_session_that_does_not_end_in_order_fails_the_run(retry: Retry) -> None:
    done = retry(test_one=PASSES + "    import os; os._exit(0)\n")
    assert done.returncode == 1
    assert "BROKEN the session ended with 0 before its time" in done.stdout


def test_a_fixture_that_fails_when_it_ends_is_not_forgiven(retry: Retry) -> None:
    wide = """
import pytest

@pytest.fixture(scope="module")
def state():
    kept = []
    yield kept
    assert kept == []

def test_writes(state):
    state.append(1)

def test_last(state):
    pass
"""
    done = retry(test_one=wide, test_two=flaky())
    assert done.returncode == 1
    assert "BROKEN test_one.py::test_last failed with assert [1] == []" in done.stdout
    assert "once more" not in done.stdout


@pytest.mark.parametrize("arguments", [("-x",), ("-x", "-n1")], ids=["one process", "xdist"])
def test_a_session_that_stops_at_the_first_failure_fails_the_run(retry: Retry, arguments: tuple[str, ...]) -> None:
    passing = "".join(f"def test_{number}():\n    pass\n" for number in range(9))
    done = retry(*arguments, plugins="xdist", test_one=flaky(), test_two=passing)
    assert done.returncode not in (0, -1)
    assert "of 10 tests were collected and did not run to their end: test_two.py::test_" in done.stdout
    assert "once more" not in done.stdout


def test_a_session_that_a_test_ends_as_if_all_were_well_fails_the_run(retry: Retry) -> None:
    leaves = "import pytest\n\ndef test_leaves():\n    pytest.exit('enough', returncode=0)\n"
    done = retry(test_one=leaves, test_two=PASSES)
    assert done.returncode == 1
    assert "BROKEN 2 of 2 tests were collected and did not run to their end: test_one.py::test_leaves" in done.stdout


def test_tests_that_are_left_out_are_none_that_did_not_run(retry: Retry) -> None:
    odd = """
import pytest

@pytest.mark.skip
def test_skipped():
    pass

@pytest.mark.xfail
def test_wrong():
    assert 0

def test_deselected():
    assert 0
"""
    done = retry("-n2", "-k", "not deselected", plugins="xdist", test_one=odd, test_two=PASSES)
    assert done.returncode == 0, done.stdout
    assert "BROKEN" not in done.stdout


def test_a_session_that_is_stuck_is_killed_with_all_that_it_started(
    retry: Retry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The shell ends at once: what it started is no longer a descendant of the session.
    stuck = """
import pathlib, subprocess, time

def test_is_stuck():
    started = subprocess.run("sleep 600 >/dev/null 2>&1 & echo $!", shell=True, capture_output=True, text=True)
    draft = pathlib.Path(__file__).with_suffix(".draft")
    draft.write_text(started.stdout)
    draft.rename(draft.with_suffix(".server"))
    time.sleep(600)
"""
    server = retry.folder / "test_one.server"

    class Impatient(subprocess.Popen[bytes]):
        """Its time has run out as soon as the test is stuck."""

        def wait(self, timeout: float | None = None) -> int:
            while timeout is not None:
                assert self.poll() is None
                if server.exists():
                    raise subprocess.TimeoutExpired(self.args, timeout)
                time.sleep(0.05)
            return super().wait()

    monkeypatch.setattr(subprocess, "Popen", Impatient)
    done = retry(test_one=stuck)
    assert done.returncode == 1
    assert "BROKEN the session did not end within 240 seconds; running: test_one.py::test_is_stuck" in done.stdout
    pid = int(server.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_run_without_time_left_fails(retry: Retry) -> None:
    retry.seconds = 0
    done = retry(test_one=PASSES)
    assert done.returncode == 1
    assert "BROKEN the session did not end within 0 seconds; running: no test" in done.stdout


def test_a_session_without_tests_fails_the_command(retry: Retry) -> None:
    retry.prepare(test_one="")
    done = subprocess.run([sys.executable, "-m", "tests.retry"], capture_output=True, text=True, timeout=240)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "BROKEN the session ended with 5" in done.stdout


def test_a_test_that_ran_out_of_time_is_a_failure_like_another(retry: Retry) -> None:
    done = retry("--timeout=1", plugins="pytest_timeout", test_one=flaky("slow", "import time; time.sleep(60)"))
    assert done.returncode == 0, done.stdout
    assert "FLAKY test_one.py::test_slow: failed with" in done.stdout


def test_outside_ci_nothing_is_tried_again(retry: Retry) -> None:
    done = retry(ci="", test_one=flaky())
    assert done.returncode == 1
    assert "once more" not in done.stdout
