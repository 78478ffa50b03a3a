"""Which message a source's rows come from, on SQLite and on PostgreSQL."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.servers.postgresql import Server
from tests.state.rows import VERSIONS
from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state import leases
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.state.versions import Known, SourceVersions, Version

OLD, NEW = (1, "t", 0, 7), (2, "t", 0, 0)


@pytest.fixture
def versions(installation: Settings) -> Iterator[SourceVersions]:
    opened = SourceVersions.open(installation)
    yield opened
    opened.close()


def test_what_nothing_is_known_of(versions: SourceVersions) -> None:
    assert versions.known("texts", ["a"]) == {}
    assert versions.known("texts", []) == {}
    assert versions.collections_of(["a"]) == {}
    assert not versions.has_any("texts")


def test_versions_belong_to_their_collection(versions: SourceVersions) -> None:
    versions.record("texts", {"a": OLD, "b": NEW})
    versions.record("images", {"a": NEW})
    assert versions.known("texts", ["a", "b", "c"]) == {"a": Known(OLD, False), "b": Known(NEW, False)}
    assert versions.collections_of(["a", "b", "c"]) == {"a": {"texts", "images"}, "b": {"texts"}}
    assert versions.collections() == ["images", "texts"]
    assert versions.has_any("texts")
    assert not versions.has_any("text")


def test_many_sources_at_once(versions: SourceVersions) -> None:
    sources = {f"{n} '\"%s ? 文": (n, "t", 0, n) for n in range(2_500)}
    versions.record("texts", sources)
    assert versions.known("texts", sources) == {name: Known(version, False) for name, version in sources.items()}


def test_a_deletion_counts_in_every_collection(versions: SourceVersions) -> None:
    versions.record("texts", {"a": OLD})
    versions.record_deletions({"a": NEW, "b": NEW})
    assert versions.known("texts", ["a", "b"]) == {"a": Known(NEW, True), "b": Known(NEW, True)}
    assert versions.known("made later", ["a", "b"]) == {"a": Known(NEW, True), "b": Known(NEW, True)}
    assert versions.collections_of(["a", "b"]) == {"a": {"texts"}}
    assert versions.collections() == ["texts"]


def test_a_deletion_is_neither_undone_by_older_messages_nor_the_end(versions: SourceVersions) -> None:
    versions.record_deletions({"a": NEW})
    versions.record("texts", {"a": OLD})
    assert versions.known("texts", ["a"]) == {"a": Known(NEW, True)}
    newer = (3, "t", 0, 0)
    versions.record("texts", {"a": newer})
    assert versions.known("texts", ["a"]) == {"a": Known(newer, False)}
    assert versions.known("images", ["a"]) == {"a": Known(NEW, True)}
    versions.record_deletions({"a": OLD})
    assert versions.known("texts", ["a"]) == {"a": Known(newer, False)}


def test_deletions_are_forgotten_when_asked(versions: SourceVersions) -> None:
    versions.record("texts", {"written": OLD})
    versions.record("texts", {"emptied": OLD, "lately": NEW}, deleted=True)
    versions.record_deletions({"deleted": OLD, "written": (0, "t", 0, 0)})
    assert versions.purge_deletions(datetime.fromtimestamp(0.002, UTC)) == 3
    assert versions.known("texts", ["written", "emptied", "lately", "deleted"]) == {
        "written": Known(OLD, False),
        "lately": Known(NEW, True),
    }


STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "empty", "delete"]), st.sampled_from("ab"), VERSIONS), min_size=1, max_size=8
)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, data=st.data())
def test_any_order_ends_in_the_newest(
    versions: SourceVersions, steps: list[tuple[str, str, Version]], data: st.DataObject
) -> None:
    """One message does one thing; whichever order messages are processed in, each collection knows the newest."""
    source = str(uuid.uuid4())
    what = {version: (step, collection) for step, collection, version in steps}
    for version in data.draw(st.permutations([version for _, _, version in steps])):
        step, collection = what[version]
        if step == "delete":
            versions.record_deletions({source: version})
        else:
            versions.record(f"{source} {collection}", {source: version}, deleted=step == "empty")
    for collection in "ab":
        of_it = [version for version, (step, name) in what.items() if step == "delete" or name == collection]
        expected = {source: Known(max(of_it), what[max(of_it)][0] != "write")} if of_it else {}
        assert versions.known(f"{source} {collection}", [source]) == expected


def _record_many(settings: Settings, turn: int, barrier: object) -> None:
    versions = SourceVersions.open(settings)
    barrier.wait()  # type: ignore[attr-defined]
    for start in range(0, 2000, 100):
        sources = {f"{n}": (n, "t", 0, turn) for n in range(start, start + 100)}
        (versions.record_deletions if turn else lambda each: versions.record("texts", each))(sources)
    versions.close()


def test_two_processes_note_the_same_sources_at_the_same_time(installation: Settings) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [context.Process(target=_record_many, args=(installation, turn, barrier)) for turn in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    versions = SourceVersions.open(installation)
    assert versions.known("texts", [f"{n}" for n in range(2000)]) == {
        f"{n}": Known((n, "t", 0, 1), True) for n in range(2000)
    }


def test_one_thread_at_a_time(versions: SourceVersions) -> None:
    inside, most, total = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, total
        for _ in range(5):
            with versions.exclusive("texts"):
                inside += 1
                most = max(most, inside)
                seen = total
                versions.record("texts", {"a": OLD})  # gives way to the others
                total = seen + 1
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most, total) == (1, 20)


def test_other_collections_are_not_waited_for(versions: SourceVersions) -> None:
    with versions.exclusive("texts") as lock, versions.exclusive("images", timeout_seconds=10):
        lock.check()


def test_waiting_ends_in_an_error(versions: SourceVersions) -> None:
    with (
        versions.exclusive("texts"),
        pytest.raises(LedgerError, match=r"the lock of collection texts for 0\.05 s"),
        versions.exclusive("texts", timeout_seconds=0.05),
    ):
        raise AssertionError
    with versions.exclusive("texts", timeout_seconds=10):
        pass


def test_an_error_of_the_body_lets_go(versions: SourceVersions) -> None:
    with pytest.raises(KeyError), versions.exclusive("../../etc/x"):
        raise KeyError
    with versions.exclusive("../../etc/x", timeout_seconds=10):
        pass


def test_a_killed_process_lets_go(versions: SourceVersions, installation: Settings) -> None:
    code = "import sys; from tests.state.processes import hold; hold(*sys.argv[1:])"
    url = installation.ledger.url.get_secret_value() if installation.ledger.url else ""
    arguments = [sys.executable, "-c", code, str(installation.home), url]
    holder = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(LedgerError), versions.exclusive("texts", timeout_seconds=0.05):
        raise AssertionError
    os.kill(holder.pid, signal.SIGKILL)
    with versions.exclusive("texts", timeout_seconds=30):
        pass
    holder.wait()


def test_a_lock_that_is_lost_meanwhile_is_an_error(
    own_postgresql: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 2.5)
    versions = SourceVersions.open(load_settings(home=tmp_path, ledger={"url": own_postgresql.url()}))
    lost = "the lock of collection texts was lost"

    def loses_it(lock: ExclusiveLock) -> None:
        lock.check()
        own_postgresql.stop()
        with pytest.raises(LedgerError, match=lost):
            lock.check()
        own_postgresql.start()

    def fails(lock: ExclusiveLock) -> None:
        own_postgresql.stop()
        raise KeyError

    def exclusively(body: Callable[[ExclusiveLock], None]) -> None:
        with versions.exclusive("texts") as lock:
            body(lock)

    with pytest.raises(LedgerError, match=lost):
        exclusively(loses_it)
    with pytest.raises(KeyError):  # what went wrong first is what is told
        exclusively(fails)
    versions.close()
