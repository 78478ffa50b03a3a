"""Files that take over the process which reads them: what they reach, and what their answers do to the run."""

import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import venv
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.attacks import hostile
from tests.components import missing
from tests.documents.builders import ENGLISH, settings
from tests.images.pictures import encoded, photo
from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.documents import ParsedDocument, ParseOutcome, ParserPool
from vectorize_pipelines.documents.codec import answer_limits, from_message, to_message
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    ParserCrashedError,
    ParserMemoryError,
    ParseTimeoutError,
)
from vectorize_pipelines.documents.pool import KNOWN_ERRORS
from vectorize_pipelines.documents.types import Section, TableRow
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.images import (
    ImageCrashedError,
    ImageDecoders,
    ImageLimits,
    ImageMemoryError,
    ImageTimeoutError,
    Preprocessing,
)
from vectorize_pipelines.sandbox import AnswerLimits, ConfinedProcess, Failures, Message, ProcessPool, ServiceSpec
from vectorize_pipelines.sandbox.check import missing_confinement
from vectorize_pipelines.sandbox.confinement import clean_environment, exposed_folders, readable_paths
from vectorize_pipelines.sandbox.frames import Channel
from vectorize_pipelines.sandbox.process import describe
from vectorize_pipelines.settings import PROJECT_ROOT

SERVICE = "tests.attacks.hostile_images:image_service"
TINY = Preprocessing(4, 4, (0.0,) * 3, (1.0,) * 3)
MODEL = Preprocessing(224, 224, (0.0,) * 3, (1.0,) * 3)
WITHIN_SECONDS = 60.0
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def confined() -> None:
    """Skips where the system cannot confine a process."""
    lacking = missing_confinement()
    if lacking:
        missing(f"processes are not confined here: {lacking}")


@pytest.fixture(scope="module")
def hostile_pool() -> Iterator[ParserPool]:
    with ParserPool(settings(parser_processes=1), handler=hostile.act) as pool:
        yield pool


@pytest.fixture
def attempt(confined: None, hostile_pool: ParserPool) -> Callable[[str, str], str]:
    """Has a parser process try something; returns what came of it."""

    def attempt(what: str, argument: str = "") -> str:
        document = hostile_pool.submit(what, content=argument.encode()).result().document
        assert document is not None
        return document.text

    return attempt


Attempt = Callable[..., str]


def test_no_variable_of_the_run_is_known(hostile_pool: ParserPool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "VECTORIZE_STORE__API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "HTTPS_PROXY",
        "HOME",
        "SSH_AUTH_SOCK",
    ):
        monkeypatch.setenv(name, "a secret")
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    with ParserPool(settings(parser_processes=1), handler=hostile.act) as pool:
        document = pool.submit("environment", content=b"").result().document
    assert document is not None
    found = json.loads(document.text)
    assert "a secret" not in found.values()
    assert not {name for name in found if name.startswith(("VECTORIZE", "AWS", "HF", "DAGSTER", "PYTEST"))}
    assert {"PATH", "LC_TIME", "OMP_NUM_THREADS"} <= set(found)


def test_there_is_no_network(attempt: Attempt, tmp_path: Path) -> None:
    connections: list[object] = []

    def accept(server: socket.socket) -> None:
        while True:
            try:
                connections.append(server.accept())
            except OSError:
                return  # closed

    servers = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
    servers[1].bind(str(tmp_path / "socket"))
    servers[1].listen()
    port = servers[0].getsockname()[1]
    threads = [threading.Thread(target=accept, args=(server,)) for server in servers]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", port))
        receiver.setblocking(False)
        for thread in threads:
            thread.start()
        assert attempt("connect", f"127.0.0.1:{port}") == "denied"
        assert attempt("connect_unix", str(tmp_path / "socket")) == "denied"
        assert attempt("datagram", f"127.0.0.1:{port}") == "denied"
        # By the kernel's own numbers, and by the way round through io_uring.
        assert attempt("system_call", f"{hostile.SOCKET} 2 1 0") == "denied"
        assert attempt("system_call", f"{hostile.IO_URING_SETUP} 1 0") == "denied"
        with socket.create_connection(("127.0.0.1", port)):  # the server does answer
            deadline = time.monotonic() + WITHIN_SECONDS
            while not connections and time.monotonic() < deadline:
                time.sleep(0.01)
        for server in servers:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
        for thread in threads:
            thread.join(WITHIN_SECONDS)
        assert len(connections) == 1
        with pytest.raises(BlockingIOError):
            receiver.recv(100)


ALONE = """
import json, sys
from tests.attacks import hostile
from vectorize_pipelines.sandbox.seccomp import refuse_system_calls
reason = refuse_system_calls()
assert reason is None, reason
print(json.dumps([hostile.tried(*each) for each in json.loads(sys.argv[2])]))
"""


def tried_without_landlock(attempts: list[tuple[str, str]]) -> list[str]:
    """What comes of each in a process that has the filter of system calls alone; it has one end of a pair, too."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-c", ALONE, str(theirs.fileno()), json.dumps(attempts)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            check=True,
        )
    found: list[str] = json.loads(done.stdout)
    return found


def test_no_message_goes_to_another_socket(attempt: Attempt, tmp_path: Path) -> None:
    """Through sockets that are made in pairs, and through the one that is there."""
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.setblocking(False)
        ways = ["pair_of_datagrams", "own_channel_elsewhere", "pass_descriptor"]
        assert [attempt(way, path) for way in ways] == ["denied"] * 3
        assert tried_without_landlock([(way, path) for way in ways]) == ["denied"] * 3
        with pytest.raises(BlockingIOError):
            receiver.recv(100)


def test_no_signal_is_sent_by_way_of_a_descriptor(attempt: Attempt) -> None:
    """Later versions of Landlock refuse that as well: tried without it."""
    victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pid = str(victim.pid)
    ways = [
        ("own_signals", pid),
        ("command_of_fcntl", f"8 {pid}"),  # F_SETOWN
        ("command_of_fcntl", f"10 {int(signal.SIGKILL)}"),  # F_SETSIG
        ("command_of_fcntl_owner", pid),
        ("command_of_fcntl", f"4 {os.O_ASYNC}"),  # F_SETFL
        ("command_of_fcntl", "1024 0"),  # F_SETLEASE
        ("command_of_ioctl", f"{0x8901} {pid}"),  # FIOSETOWN
        ("command_of_ioctl", f"{0x8902} {pid}"),  # SIOCSPGRP
        ("command_of_ioctl", f"{0x5452} 1"),  # FIOASYNC
        ("command_of_ioctl", f"{0x5412} 65"),  # TIOCSTI
    ]
    try:
        assert tried_without_landlock(ways) == ["denied"] * len(ways)
        assert [attempt(*way) for way in ways] == ["denied"] * len(ways)
        assert victim.poll() is None
    finally:
        victim.communicate(b"\n")
    assert victim.returncode == 0


def test_no_queue_of_other_processes_is_used() -> None:
    """They have numbers that can be guessed."""
    ways = [
        ("system_call", f"{hostile.MSGRCV} 0 0 0 0 {0o4000}"),
        ("system_call", f"{hostile.SEMCTL} 0 0 0"),
    ]
    assert tried_without_landlock(ways) == ["denied"] * 2


def test_what_libraries_do_with_descriptors_still_works(attempt: Attempt) -> None:
    assert attempt("honest_commands") == "done"


@pytest.mark.skipif(not hostile.X86, reason="only x86_64 has other numbers for system calls")
def test_the_other_numbers_of_system_calls_are_refused_too(attempt: Attempt) -> None:
    assert attempt("system_call", f"{0x40000000 + hostile.SOCKET} 2 1 0") == "denied"


def test_no_file_is_seen_or_changed(attempt: Attempt, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    secret.chmod(0o600)
    for what in ("read", "write", "append", "remove", "change_mode"):
        assert attempt(what, str(secret)) == "denied", what
    for path in ("/etc/passwd", "/proc/self/environ", "/proc/1/environ", f"/proc/{os.getpid()}/maps"):
        assert attempt("read", path) == "denied", path
    for path in (str(tmp_path), str(Path.home()), "/"):
        assert attempt("list_folder", path) == "denied", path
    assert attempt("write", str(tmp_path / "new")) == "denied"
    # What Python is installed in can be read, since modules are imported when they are needed, but not changed.
    module = json.__file__
    assert "JSON" in attempt("read", module)
    for what in ("append", "remove", "change_mode"):
        assert attempt(what, module) == "denied", what
    assert (secret.read_text(), secret.stat().st_mode & 0o777) == ("the secret", 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]


def covers(paths: Iterable[str], path: Path) -> bool:
    return any(path.is_relative_to(os.path.realpath(each)) for each in paths)


@pytest.fixture
def readable() -> Iterator[Callable[[], tuple[str, ...]]]:
    """What may be read, found out each time that it is called."""

    def found() -> tuple[str, ...]:
        readable_paths.cache_clear()
        return readable_paths()

    yield found
    readable_paths.cache_clear()


Readable = Callable[[], tuple[str, ...]]


def test_a_project_below_usr_is_not_read(readable: Readable) -> None:
    found = readable()
    for project in ("/usr/src/app/.env", "/usr/app/.env", "/usr/local/app/.env", "/opt/app/.env"):
        assert not covers(found, Path(project)), project
    assert covers(found, Path(json.__file__).resolve())
    assert covers(found, Path(pytest.__file__).resolve())
    assert covers(found, Path(hostile.__file__).parents[2] / "vectorize_pipelines" / "core" / "items.py")


def test_an_environment_in_the_projects_root_does_not_open_it(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    venv.create(root, symlinks=True, with_pip=False)
    code = "from vectorize_pipelines.sandbox.confinement import readable_paths; print(*readable_paths(), sep='\\n')"
    done = subprocess.run(
        [str(root / "bin" / "python"), "-c", code],
        env={"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    found = done.stdout.splitlines()
    packages = f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    assert covers(found, root / "lib" / packages / "a.py")
    for private in (".env", ".vectorize", "data/a.pdf", "lib/notes.txt"):
        assert not covers(found, root / private), private


def test_relative_library_paths_are_those_of_the_run(
    readable: Readable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for root in ("/", "//", "/.", "/usr/..", ":", ""):
        monkeypatch.setenv("LD_LIBRARY_PATH", root)
        assert not covers(readable(), Path("/etc/passwd")), root
    for relative in (".", "./", "lib/..", ":.:", "/nowhere;."):
        monkeypatch.setenv("LD_LIBRARY_PATH", relative)
        found = readable()
        assert covers(found, tmp_path.resolve() / "a.so"), relative
        assert all(Path(path).is_absolute() for path in found), relative
        assert not covers(found, Path("/etc/passwd")), relative
        assert all(Path(path).is_absolute() for path in clean_environment()["LD_LIBRARY_PATH"].split(":")), relative
    monkeypatch.setenv("LD_LIBRARY_PATH", "$ORIGIN/../lib")
    assert clean_environment()["LD_LIBRARY_PATH"] == "$ORIGIN/../lib"


def test_relative_library_paths_open_no_file(
    confined: None, readable: Readable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    folder = tmp_path / "libraries"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LD_LIBRARY_PATH", ".")
    readable()
    with ParserPool(settings(parser_processes=1), handler=hostile.act) as pool:
        document = pool.submit("read", content=str(secret).encode()).result().document
    assert document is not None
    assert document.text == "denied"


def test_a_home_that_can_be_read_is_reported(
    confined: None, readable: Readable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert missing_confinement() == {}
    (tmp_path / "link").symlink_to(tmp_path / "libraries")
    home = tmp_path / "libraries" / "home"
    home.mkdir(parents=True)
    monkeypatch.setenv("VECTORIZE_HOME", str(home))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "link"))
    readable()
    lacking = missing_confinement()
    assert set(lacking) == {"project"}
    assert str(home) in describe(lacking)
    assert "VECTORIZE_HOME" in describe(lacking)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(PROJECT_ROOT))
    assert "the project's folder" in exposed_folders(readable())["project"]
    monkeypatch.chdir(tmp_path / "libraries")
    Path(".env").write_text("")
    monkeypatch.setenv("LD_LIBRARY_PATH", ".")
    assert ".env" in exposed_folders(readable())["project"]


@pytest.mark.parametrize(
    "what",
    [
        "signal_parent",
        "signal_all",
        "starve_parent",
        "raise_own_limit",
        "read_parent",
        "read_parent_memory",
        "trace_parent",
        "run_program",
        "start_program",
        "fork",
    ],
)
def test_no_other_process_is_reached_or_started(attempt: Attempt, what: str) -> None:
    assert attempt(what) == "denied"


def test_memory_that_is_no_address_space_is_refused(attempt: Attempt) -> None:
    assert attempt("system_call", f"{hostile.MEMFD_CREATE} 0 0") == "denied"


def parser_failures() -> Failures:
    """As those of a parser pool."""
    return Failures(
        "parser",
        "parsed",
        KNOWN_ERRORS,
        crashed=ParserCrashedError,
        timeout=lambda: ParseTimeoutError("took too long"),
        memory=lambda: ParserMemoryError("takes too much"),
    )


@pytest.fixture(scope="module")
def make_hostile() -> Iterator[Callable[..., ConfinedProcess]]:
    """Makes processes that answer what they are told (`hostile_answers`), each started when it is asked."""
    made: list[ConfinedProcess] = []

    def make(timeout_seconds: float = 30.0) -> ConfinedProcess:
        spec = ServiceSpec("tests.attacks.hostile_answers:service", {}, 2**30, timeout_seconds)
        made.append(ConfinedProcess(spec, parser_failures()))
        return made[-1]

    yield make
    for each in made:
        each.end()


MakeHostile = Callable[..., ConfinedProcess]
#: The smallest that there are.
LIMITS = answer_limits(settings(max_decompressed_bytes=1, max_file_bytes=1))


def asked(process: ConfinedProcess, way: str, body: bytes) -> ParseOutcome:
    """What a parser pool makes of the answer of a process, which answers in one of the `hostile_answers`."""
    return process.call(Message(way, body), LIMITS, from_message)


def test_an_answer_runs_no_code(make_hostile: MakeHostile, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    code = hostile.pickled(str(marker))
    assert b"mkdir" in code
    framed = struct.pack("!i", len(code)) + code  # as multiprocessing frames it
    process = make_hostile()
    for sent in (code, framed, struct.pack("!QQ", len(code), 0) + code):
        with pytest.raises(ParserCrashedError):
            asked(process, "raw", sent)
    assert not marker.exists()
    pickle.loads(code)  # it does run, where it is loaded
    assert marker.exists()


def answer(header: object) -> bytes:
    return json.dumps({"answer": header}).encode()


OUTCOME = {"hash": "0" * 32, "metadata": {}, "sections": [[], [], []], "pages": [[], [], [], []], "rows": [[]] * 6}


@pytest.fixture(scope="module")
def told(make_hostile: MakeHostile) -> Callable[[bytes], ParseOutcome]:
    """Has one process answer this header."""
    return partial(asked, make_hostile(), "told")


Told = Callable[[bytes], ParseOutcome]


NO_ANSWERS = {
    "not JSON": b"no JSON",
    "not UTF-8": b'{"answer": "\xff"}',
    "deep": b'{"answer": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a bit too deep": answer({**OUTCOME, "metadata": {"a": eval("[" * 150 + "]" * 150)}}),
    "values": b'{"answer": [' + b"[]," * 400_000 + b"[]]}",
    "a list": b"[1, 2]",
    "nothing": b"{}",
    "both": b'{"answer": {}, "error": "TooLargeError"}',
    "no hash": answer({}),
    "a hash that is none": answer({"hash": "x" * 32}),
    "a number as hash": answer({"hash": 7}),
    "metadata of another type": answer({**OUTCOME, "metadata": []}),
    "no sections": answer({"hash": "0" * 32, "metadata": {}}),
    "a span outside": answer({**OUTCOME, "pages": [[0], [1], [1], []]}),
    "a span before": answer({**OUTCOME, "pages": [[-1], [0], [1], []]}),
    "a huge span": answer({**OUTCOME, "pages": [[0], [10**30], [1], []]}),
    "a span of truths": answer({**OUTCOME, "pages": [[False], [False], [1], []]}),
    "spans that do not end": answer({**OUTCOME, "pages": [[0, 0], [0], [1], []]}),
    "metadata of pages that are not there": answer({**OUTCOME, "pages": [[], [], [], [{}]]}),
    "a member that is none": answer({**OUTCOME, "members": [["a.txt", 7]]}),
    "a member's text that is not there": answer({**OUTCOME, "members": [["a.txt", {**OUTCOME, "bytes": 1}]]}),
    "a path of numbers": answer({**OUTCOME, "sections": [[0], [0], [[1]]]}),
    "a row of no kind": answer({**OUTCOME, "rows": [[0], [0], [0], [0], [], []]}),
    "a column too short": answer({**OUTCOME, "rows": [[0], [0], [0], [0], [["a"]], [[[]]]]}),
    "infinite": answer({**OUTCOME, "metadata": {"a": float("inf")}}),
    "no number": answer({**OUTCOME, "metadata": {"a": float("nan")}}),
    "as good as infinite": answer(OUTCOME).replace(b'"metadata": {}', b'"metadata": {"a": 1e999}'),
    "a large number": answer({**OUTCOME, "metadata": {"a": 10**40}}),
    "half a character": answer({**OUTCOME, "metadata": {"a": "\ud800"}}),
    "NUL": answer({**OUTCOME, "metadata": {"a": "\0"}}),
    "an error that is none": b'{"error": "SystemExit", "reason": ""}',
    "an error of another part": b'{"error": "StoreError", "reason": ""}',
    "an error without a text": b'{"error": "TooLargeError", "reason": 7}',
    "an error of no name": b'{"error": ["TooLargeError"], "reason": ""}',
    "a reservation of no size": b'{"needs": -1}',
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_is_no_answer_ends_that_process_only(name: str, told: Told) -> None:
    with pytest.raises(ParserCrashedError, match="answer what it must not"):
        told(NO_ANSWERS[name])
    assert told(answer({"hash": "a" * 32})).content_hash == "a" * 32


def test_objects_are_counted_by_what_they_take(told: Told) -> None:
    """Few bytes of JSON, few values, and hundreds of megabytes of objects."""
    header = b'{"answer": [' + b'{"a":{}},' * 1_500_000 + b"0]}"
    before = psutil.Process().memory_info().rss
    with pytest.raises(ParserCrashedError, match="a message of too many values"):
        told(header)
    assert psutil.Process().memory_info().rss - before < 100 * MEBIBYTE


def test_a_large_table_is_still_taken() -> None:
    """Ten columns of text at the largest count of rows, texts full of what JSON is made of: a tenth of all of that."""
    limits = answer_limits(settings())
    row = {f"column {number}": 'a, "b" [c]' if number == 0 else "value" for number in range(10)}
    rows = tuple(TableRow(0, 0, number, row) for number in range(settings().max_rows // 10))
    outcome = ParseOutcome("0" * 32, ParsedDocument("", {}, rows=rows))
    assert to_message(outcome, AnswerLimits(limits.header // 10, limits.body // 10)).header["rows"]


def test_an_outcome_that_would_not_be_taken_is_an_error_of_its_own() -> None:
    """The parser says so, before the other side would call it a crash: nested values count, and what texts hold."""
    values: list[JsonValue] = [[{}] * 100, "," * 1000, {str(number): [] for number in range(100)}, '"' * 1000]
    for value in values:
        rows = tuple(TableRow(0, 0, number, {"a": value}) for number in range(3_000))
        with pytest.raises(DecompressionLimitError, match="MAX_DECOMPRESSED_BYTES"):
            to_message(ParseOutcome("0" * 32, ParsedDocument("", {}, rows=rows)), LIMITS)
    sections = tuple(Section(0, 0, ("heading",) * 5) for _ in range(80_000))
    with pytest.raises(DecompressionLimitError, match="MAX_DECOMPRESSED_BYTES"):
        to_message(ParseOutcome("0" * 32, ParsedDocument("", {}, sections=sections)), LIMITS)


IMAGES_SPEC = ServiceSpec(SERVICE, {}, 2**30, 30.0)
FAILURES = Failures("test", "run", {}, ItemError, ItemError, ItemError)


def large_task(length: int) -> Message:
    return Message({"preprocessing": None}, f"large header:{length}".encode())


def test_large_answers_are_read_one_at_a_time() -> None:
    """And small ones beside them."""
    pool = ProcessPool(3, IMAGES_SPEC, FAILURES, answers_bytes=2**20)
    lock, reading, most, small = threading.Lock(), 0, 0, threading.Event()

    def read(answer: Message) -> int:
        nonlocal reading, most
        with lock:
            reading += 1
            most = max(most, reading)
        assert small.wait(WITHIN_SECONDS)
        time.sleep(0.2)  # long enough for others to come, were they let in
        with lock:
            reading -= 1
        return len(answer.header)

    def call(length: int, read: Callable[[Message], int]) -> int:
        with pool.process() as process:
            return process.call(large_task(length), AnswerLimits(2**20, 0), read)

    try:
        large = [pool.submit(lambda: call(2**18, read)) for _ in range(2)]
        assert pool.submit(lambda: call(10, lambda answer: len(answer.header))).result(WITHIN_SECONDS) == 10
        small.set()
        assert [each.result(WITHIN_SECONDS) for each in large] == [2**18] * 2
    finally:
        pool.close()
    assert most == 1


def test_a_reservation_that_is_large_itself_waits_for_nobody() -> None:
    """Were it held until the task's end, the answer would wait for it."""
    pool = ProcessPool(1, IMAGES_SPEC, FAILURES, answers_bytes=2**20)

    def call() -> int:
        with pool.process() as process:
            task = Message({"preprocessing": None}, b"large reservation")
            return process.call(task, AnswerLimits(2**20, 0), lambda answer: len(answer.header))

    try:
        assert pool.submit(call).result(WITHIN_SECONDS) == 2**18
    finally:
        pool.close()


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_half_an_answer_is_not_taken_for_the_next_one(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = ConfinedProcess(IMAGES_SPEC, FAILURES)
    limits = AnswerLimits(2**23, 0)
    receive = Channel._read

    def fail_within(self: Channel, size: int, *others: Any) -> bytearray:
        if size > 2**20:
            receive(self, 2**20, *others)
            raise error
        return receive(self, size, *others)

    try:
        assert process.call(large_task(3), limits, lambda answer: len(answer.header)) == 3
        with monkeypatch.context() as patched:
            patched.setattr(Channel, "_read", fail_within)
            with pytest.raises(error):
                process.call(large_task(2**22), limits, lambda answer: len(answer.header))
        assert process.end() == "not running"
        for length in (5, 2**22):
            assert process.call(large_task(length), limits, lambda answer: len(answer.header)) == length
    finally:
        process.end()


@pytest.mark.parametrize("lengths", [(2**32, 0), (0, 2**32), (2**63, 2**63), (100, 0)])
def test_an_announced_length_takes_no_memory(lengths: tuple[int, int], make_hostile: MakeHostile) -> None:
    before = psutil.Process().memory_info().rss
    with pytest.raises((ParserCrashedError, ParseTimeoutError)):
        asked(make_hostile(timeout_seconds=1.0), "raw", struct.pack("!QQ", *lengths))
    assert psutil.Process().memory_info().rss - before < 100 * MEBIBYTE


def test_an_answer_that_never_ends_is_given_up(make_hostile: MakeHostile) -> None:
    begun = time.monotonic()
    with pytest.raises((ParseTimeoutError, ParserCrashedError)):
        asked(make_hostile(timeout_seconds=1.0), "drip", b"")
    assert time.monotonic() - begun < WITHIN_SECONDS


def test_an_error_moves_no_cursor_and_has_an_end(told: Told) -> None:
    reported = {"error": "CorruptDocumentError", "reason": "\x1b[2J\r\n\u202e" + "y" * 10_000}
    with pytest.raises(CorruptDocumentError) as caught:
        told(json.dumps(reported).encode())
    assert str(caught.value).isprintable()
    assert 1_000 < len(str(caught.value)) < 10_000


def test_files_are_still_read(confined: None, tmp_path: Path) -> None:
    """The process that sees no files is handed the one that it reads."""
    path = tmp_path / "a.txt"
    path.write_text(ENGLISH)
    path.chmod(0o400)
    with ParserPool(settings(parser_processes=1)) as pool:
        for uri in (str(path), path.as_uri()):
            document = pool.submit(uri).result().document
            assert document is not None
            assert document.text == ENGLISH


@pytest.fixture
def hostile_images() -> Iterator[Callable[..., ImageDecoders]]:
    opened: list[ImageDecoders] = []

    def decoders(processes: int = 2, **limits: float) -> ImageDecoders:
        opened.append(ImageDecoders(ImageLimits(**limits), processes, SERVICE))  # type: ignore[arg-type]
        return opened[-1]

    yield decoders
    for each in opened:
        each.close()


def test_a_codec_that_crashes_fails_one_image(hostile_images: Callable[..., ImageDecoders]) -> None:
    decoders = hostile_images()
    futures = [decoders.submit(b"crash" if number % 4 == 1 else b"pid", TINY) for number in range(9)]
    for number, future in enumerate(futures):
        if number % 4 == 1:
            with pytest.raises(ImageCrashedError, match="SIGSEGV"):
                future.result()
        else:
            assert future.result().shape == (4, 4, 3)


def test_a_codec_that_hangs_fails_one_image(hostile_images: Callable[..., ImageDecoders]) -> None:
    decoders = hostile_images(1, timeout_seconds=1.0)
    with pytest.raises(ImageTimeoutError, match=r"longer than 1 s.*IMAGES__TIMEOUT_SECONDS"):
        decoders.submit(b"hang", TINY).result()
    assert decoders.submit(b"pid", TINY).result().any()


def test_pixels_and_headers_are_not_believed(hostile_images: Callable[..., ImageDecoders]) -> None:
    decoders = hostile_images(1)
    with pytest.raises(ImageCrashedError, match="pixels of another size"):
        decoders.submit(b"wrong size", TINY).result()
    with pytest.raises(ImageCrashedError, match="no size"):
        decoders.header(b"wrong header")
    with pytest.raises(ImageCrashedError, match="a thumbnail without a size"):
        decoders.thumbnail(b"wrong header", 64)
    assert decoders.submit(b"pid", TINY).result().any()


def test_large_images_take_turns(hostile_images: Callable[..., ImageDecoders]) -> None:
    decoders = hostile_images(3, decoding_bytes=2**26)
    wanted = [2**26, 2**25, 2**62, 2**25]  # what is more than all has all to itself
    futures = [decoders.submit(f"reserve:{size}".encode(), TINY) for size in wanted]
    times = [struct.unpack("!dd", future.result().tobytes()[:16]) for future in futures]
    for number, (begun, ended) in enumerate(times):
        for other, (its_begin, its_end) in enumerate(times):
            together = min(wanted[number], 2**26) + min(wanted[other], 2**26) <= 2**26
            assert number == other or together or ended <= its_begin or its_end <= begun


def grey_bomb(width: int, height: int) -> bytes:
    """A PNG of 16-bit grey, made row by row: all black, so that a few hundred kilobytes hold it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    compressor = zlib.compressobj(9)
    row = bytes(1 + 2 * width)
    content = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


PEAKS = """
import json, sys
from pathlib import Path
import psutil
from vectorize_pipelines.images import ImageDecoders, ImageLimits, Preprocessing

def peak(pid):
    return next(int(line.split()[1]) * 1024 for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM"))

decoders = ImageDecoders(ImageLimits(timeout_seconds=300), 2)
model = Preprocessing(224, 224, (0.0,) * 3, (1.0,) * 3)
futures = [decoders.submit(Path(sys.argv[1]).read_bytes(), model) for _ in range(2)]
shapes = [future.result().shape for future in futures]
children = [peak(child.pid) for child in psutil.Process().children()]
print(json.dumps({"shapes": shapes, "run": peak("self"), "children": children}))
decoders.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has taken at most")
def test_two_bombs_at_once_stay_small(tmp_path: Path) -> None:
    """Once 4.2 GiB in the run's own process, for two of four times as many pixels."""
    bomb = tmp_path / "grey.png"
    bomb.write_bytes(grey_bomb(4_730, 4_730))
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, str(bomb)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["shapes"] == [[224, 224, 3]] * 2
    assert found["run"] < 200 * MEBIBYTE
    assert len(found["children"]) == 2
    # 22 megapixels: two bytes each as they are stored, one as grey, four as RGB.
    assert all(size < 320 * MEBIBYTE for size in found["children"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space")
def test_a_bomb_beyond_the_limit_fails_alone(tmp_path: Path) -> None:
    """As many pixels as the limit of these allows."""
    bomb = tmp_path / "grey.png"
    bomb.write_bytes(grey_bomb(9_459, 9_459))
    assert bomb.stat().st_size < MEBIBYTE
    decoders = ImageDecoders(ImageLimits(memory_bytes=2**29, timeout_seconds=300), 1)
    try:
        with pytest.raises(ImageMemoryError, match="IMAGES__MEMORY_BYTES"):
            decoders.submit(bomb, MODEL).result()
        assert decoders.submit(encoded(photo(1, 30, 30), "PNG"), MODEL).result().shape == (224, 224, 3)
    finally:
        decoders.close()


HANGING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from vectorize_pipelines.images import ImageDecoders, ImageLimits, Preprocessing
decoders = ImageDecoders(ImageLimits(timeout_seconds=600), 2, "tests.attacks.hostile_images:image_service")
model = Preprocessing(4, 4, (0.0,) * 3, (1.0,) * 3)
decoders.submit(b"pid", model).result()
decoders.submit(b"hang", model).result()
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_ends_whatever_its_images_do(sent: signal.Signals, tmp_path: Path) -> None:
    """With a codec that hangs in C, and no one there to close anything."""
    script = tmp_path / "script.py"
    script.write_text(HANGING)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        child = hanging_child(parent.pid)
        parent.send_signal(sent)
        assert parent.wait(WITHIN_SECONDS) != 0
        _, alive = psutil.wait_procs([child], timeout=WITHIN_SECONDS)
        assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    finally:
        if parent.poll() is None:
            parent.kill()
            parent.wait()


def hanging_child(parent: int) -> psutil.Process:
    deadline = time.monotonic() + WITHIN_SECONDS
    while time.monotonic() < deadline:
        for child in psutil.Process(parent).children():
            if child.name() == "hanging":
                return child
        time.sleep(0.01)
    raise AssertionError("no process hangs")
