"""The pool under fire: whatever a file does to its process, the others are read, and nothing is left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import psutil
import pytest

from tests.documents.builders import ENGLISH, encrypted_pdf, pdf, settings
from tests.documents.handlers import act, ask, busy_process, done
from vectorize_pipelines.core.items import content_hash
from vectorize_pipelines.documents import ParserPool
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    EncryptedDocumentError,
    ParserCrashedError,
    ParserMemoryError,
    ParseTimeoutError,
    TooLargeError,
)
from vectorize_pipelines.errors import UnreadableFileError
from vectorize_pipelines.sandbox import process as process_module

pytestmark = pytest.mark.slow

GONE_WITHIN_SECONDS = 20
MEMORY_BYTES = 3 * 2**29


@pytest.fixture
def acting() -> Iterator[ParserPool]:
    """One process that does as its tasks say."""
    with ParserPool(settings(parser_processes=1, memory_bytes=MEMORY_BYTES), handler=act) as parser_pool:
        yield parser_pool


def pid(parser_pool: ParserPool) -> int:
    return int(done(ask(parser_pool, "pid")))


def assert_gone(*pids: int) -> None:
    processes = [psutil.Process(number) for number in pids if psutil.pid_exists(number)]
    running = [process for process in processes if process.status() != psutil.STATUS_ZOMBIE]
    assert not psutil.wait_procs(running, timeout=GONE_WITHIN_SECONDS)[1]


def test_files_are_read_and_parsed_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(ENGLISH)
    with ParserPool(settings(parser_processes=2)) as parser_pool:
        plain, remote = (parser_pool.submit(uri) for uri in (str(path), path.as_uri()))
        assert plain.result() == remote.result()
        outcome = plain.result()
        assert outcome.content_hash == content_hash(ENGLISH.encode())
        assert outcome.document is not None
        assert outcome.document.text == ENGLISH
        assert outcome.document.metadata["language"] == "en"
        again = parser_pool.submit(str(path), path.stat().st_size, outcome.content_hash).result()
        assert (again.content_hash, again.document) == (outcome.content_hash, None)
        assert parser_pool.submit(str(path), None, "another hash").result() == outcome


def test_errors_come_back_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(encrypted_pdf(pdf([ENGLISH]), "secret"))
    (tmp_path / "large.txt").write_text("x" * 101)
    os.mkfifo(tmp_path / "fifo.txt")
    with ParserPool(settings(parser_processes=1)) as parser_pool:
        with pytest.raises(EncryptedDocumentError, match="remove the password"):
            parser_pool.submit(str(tmp_path / "a.pdf")).result()
        for name, reason in [("none.txt", "No such file"), ("fifo.txt", "no regular file"), ("", "no regular file")]:
            with pytest.raises(UnreadableFileError, match=reason) as raised:
                parser_pool.submit(str(tmp_path / name)).result()
            assert raised.value.retryable
        for uri in [(tmp_path / "none.txt").as_uri(), "nosuchscheme://a.txt"]:
            with pytest.raises(UnreadableFileError, match="cannot be read: "):
                parser_pool.submit(uri).result()
    with ParserPool(settings(parser_processes=1, max_file_bytes=100)) as parser_pool:
        with pytest.raises(TooLargeError):
            parser_pool.submit(str(tmp_path / "large.txt")).result()
        with pytest.raises(TooLargeError):
            parser_pool.submit("/dev/null/unread.txt", 101).result()


def test_no_process_is_started_before_it_is_needed() -> None:
    before = set(psutil.Process().children())
    with ParserPool(settings(parser_processes=2), handler=act) as parser_pool:
        assert set(psutil.Process().children()) <= before
        pid(parser_pool)
        assert len(set(psutil.Process().children()) - before) == 1


def test_processes_stay_light(acting: ParserPool) -> None:
    loaded = set(done(ask(acting, "modules")).split())
    assert not loaded & {"dagster", "torch", "lancedb", "transformers", "pandas", "pytest"}


def test_output_of_libraries_stays_out_of_ours(acting: ParserPool, capfd: pytest.CaptureFixture[str]) -> None:
    ask(acting, "speak:hello").result()
    acting.__exit__(None, None, None)
    assert capfd.readouterr().out == ""


def test_what_a_parser_logs_of_a_bad_file_is_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4\nno PDF at all")
    with ParserPool(settings(parser_processes=1)) as parser_pool, pytest.raises(CorruptDocumentError):
        parser_pool.submit(str(tmp_path / "bad.pdf")).result()
    assert capfd.readouterr() == ("", "")


def test_a_process_serves_its_time(acting: ParserPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "TASKS_PER_PROCESS", 2)
    first, second, third = (pid(acting) for _ in range(3))
    assert first == second != third
    assert_gone(first)


@pytest.mark.parametrize(
    ("action", "ending"),
    [("segfault", "SIGSEGV"), ("kill", "SIGKILL, perhaps for want of memory"), ("exit", "status 3")],
)
def test_a_crash_concerns_one_file_only(action: str, ending: str) -> None:
    with ParserPool(settings(parser_processes=2), handler=act) as parser_pool:
        futures = [ask(parser_pool, action if number % 4 == 1 else "pid") for number in range(9)]
        for number, future in enumerate(futures):
            if number % 4 == 1:
                with pytest.raises(ParserCrashedError, match=ending) as raised:
                    future.result()
                assert raised.value.retryable
            else:
                assert done(future)


def test_a_process_that_is_killed_while_idle_is_replaced(acting: ParserPool) -> None:
    first = pid(acting)
    os.kill(first, signal.SIGKILL)
    assert pid(acting) != first


def test_a_file_that_takes_too_long_is_given_up() -> None:
    with ParserPool(settings(parser_processes=1, timeout_seconds=0.5), handler=act) as parser_pool:
        first = pid(parser_pool)
        with pytest.raises(ParseTimeoutError, match=r"longer than 0\.5 s.*TIMEOUT_SECONDS"):
            ask(parser_pool, "hang").result()
        assert pid(parser_pool) != first
        assert_gone(first)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space")
def test_a_file_that_takes_too_much_memory_is_given_up(acting: ParserPool) -> None:
    first = pid(acting)
    with pytest.raises(ParserMemoryError, match="MEMORY_BYTES"):
        ask(acting, "memory").result()
    assert pid(acting) != first


def test_an_item_error_keeps_the_process(acting: ParserPool) -> None:
    first = pid(acting)
    with pytest.raises(EncryptedDocumentError, match="why"):
        ask(acting, "refuse:why").result()
    with pytest.raises(ParserCrashedError, match="KeyError: 'a defect'"):
        ask(acting, "fail").result()
    assert pid(acting) == first


def test_leaving_stops_what_runs_and_cancels_what_waits() -> None:
    with ParserPool(settings(parser_processes=1), handler=act) as parser_pool:
        running, waiting = ask(parser_pool, "busy"), ask(parser_pool, "pid")
        worker = busy_process()
    assert_gone(worker)
    with pytest.raises(ParserCrashedError):
        running.result()
    with pytest.raises(CancelledError):
        waiting.result()
    with pytest.raises(RuntimeError):
        ask(parser_pool, "pid")


def test_a_process_that_cannot_start_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "COMMAND", "raise SystemExit(7)")
    with ParserPool(settings(parser_processes=1), handler=act) as parser_pool:
        with pytest.raises(RuntimeError, match=r"could not start \(exit status 7\)"):
            ask(parser_pool, "pid").result()
        monkeypatch.undo()
        assert pid(parser_pool)


#: Not guarded by `if __name__ == "__main__"`: the processes must not run their parent's script.
SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it
from tests.documents.handlers import act, ask, done
from vectorize_pipelines.documents import ParserPool
from vectorize_pipelines.settings import DocumentSettings
with ParserPool(DocumentSettings(parser_processes=2), handler=act) as pool:
    print(done(ask(pool, "pid")), flush=True)
    ask(pool, "busy").result()
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_its_parent(sent: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    idle = int(parent.stdout.readline())
    busy = busy_process(parent.pid)
    if sent == signal.SIGINT:  # as a terminal does: to the whole group
        os.killpg(parent.pid, sent)
    else:
        parent.send_signal(sent)
    assert parent.wait(GONE_WITHIN_SECONDS) != 0
    assert_gone(idle, busy)
    parent.stdout.close()
