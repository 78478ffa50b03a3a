"""Files of LanceDB tables are damaged: the last whole version counts, and one table does not stop the others."""

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.attacks import power_loss_work as work
from tests.commands import Vectorize
from vectorize_pipelines.core import durable_files
from vectorize_pipelines.errors import (
    CollectionNotFoundError,
    DamagedCollectionError,
    StoreError,
    StoreUnavailableError,
)
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.conformance.records import COLLECTION, many, spec, stored
from vectorize_pipelines.stores.lancedb.commits import manifest_file, versions
from vectorize_pipelines.stores.lancedb.durability import Durability
from vectorize_pipelines.stores.lancedb.marks import Marks


def _directory(home: Path) -> Path:
    return home / "lancedb"


def _newest(home: Path, table: str) -> Path:
    directory = _directory(home)
    return manifest_file(directory, table, versions(directory, table)[0])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def _garbage(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


def _opened(home: Path) -> VectorStore:
    return open_store(StoreSettings(), home)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("VECTORIZE_HOME", str(home))
    return home


@pytest.fixture
def store(home: Path) -> VectorStore:
    store = _opened(home)
    store.ensure_collection(COLLECTION, spec())
    return store


@pytest.mark.parametrize("damage", [_empty, _cut_off, _zeros, _garbage, Path.unlink])
@pytest.mark.parametrize("part", ["_versions", "data"])
def test_a_damaged_newest_version_gives_way_to_the_one_before(
    store: VectorStore,
    home: Path,
    caplog: pytest.LogCaptureFixture,
    part: str,
    damage: Callable[[Path], None],
) -> None:
    physical = store.collection(COLLECTION).physical
    store.upsert(COLLECTION, many(6).slice(0, 3))
    store.flush()
    data = _directory(home) / f"{physical}.lance" / "data"
    before = set(data.iterdir())
    store.upsert(COLLECTION, many(6).slice(3))
    store.close()
    [file] = [_newest(home, physical)] if part == "_versions" else set(data.iterdir()) - before
    damage(file)
    again = _opened(home)
    if part == "data":  # which is found only by whoever reads it
        with pytest.raises(StoreUnavailableError, match="fell back to an earlier version: read it again"):
            stored(again)
    assert len(stored(again)) == 3
    assert again.upsert(COLLECTION, many(6)).updated == 3
    if (part, damage) != ("_versions", Path.unlink):  # of which there is no trace
        assert f"the table {physical} is damaged" in caplog.text
        assert again.is_doubtful(COLLECTION)
        assert list(_directory(home).glob("*.lance/_versions/*.damaged"))
        again.trust(COLLECTION)
        assert not again.is_doubtful(COLLECTION)


def test_damaged_transactions_are_borne(store: VectorStore, home: Path) -> None:
    store.upsert(COLLECTION, many(3))
    store.close()
    for file in _directory(home).glob("*.lance/_transactions/*"):
        _empty(file)
    again = _opened(home)
    assert again.upsert(COLLECTION, many(6)).inserted == 3
    assert len(stored(again)) == 6


def test_the_next_run_compares_every_file_with_what_is_left(tmp_path: Path, home: Path) -> None:
    settings = work.installed(home)
    store = _opened(home)
    folder = tmp_path / "documents"
    work.lay_out(folder, 0)
    work.ingest(settings, store, folder)
    physical = store.collection(work.COLLECTION).physical
    store.flush()
    # A change that leaves the number of rows as it was, so that only their content tells.
    file = folder / "1.txt"
    file.write_text(file.read_text().replace("step 0", "step 9"))
    whole = versions(_directory(home), physical)[0]
    work.ingest(settings, store, folder)
    store.close()
    for version in versions(_directory(home), physical):
        if version > whole:
            _empty(manifest_file(_directory(home), physical, version))
    store = _opened(home)
    assert "step 0" in work.passages(store)["1.txt"][0]
    work.ingest(settings, store, folder)
    assert work.passages(store) == {each.name: each.read_text().splitlines() for each in folder.iterdir()}
    assert not store.is_doubtful(work.COLLECTION)
    assert work.ingest(settings, store, folder) == 0


def test_what_was_not_flushed_before_the_power_went_is_put_aside(
    store: VectorStore, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it can be read or not: nobody can tell whether its vectors are the ones that were written."""
    physical = store.collection(COLLECTION).physical
    store.upsert(COLLECTION, many(3))
    store.flush()
    store.upsert(COLLECTION, many(6).slice(3))
    marks = Marks(_directory(home))
    mark = marks.read(physical)
    assert mark is not None
    assert len(stored(_opened(home))) == 6, "the system runs on, as after a kill"
    with pytest.raises(StoreError, match="another process has written"), _another_system(marks, physical):
        _opened(home).upsert(COLLECTION, many(6))  # somebody may still flush it
    store._durability.close()  # type: ignore[attr-defined]
    marks.update(physical, lambda now: replace(now or mark, version=mark.version, commit=mark.commit, system="before"))
    again = _opened(home)
    assert len(stored(again)) == 3
    assert "Nothing of it was acknowledged" in caplog.text
    assert not again.is_doubtful(COLLECTION)
    assert again.upsert(COLLECTION, many(6)).inserted == 3


def _another_system(marks: Marks, table: str) -> "_AnotherSystem":
    return _AnotherSystem(marks, table)


class _AnotherSystem:
    """The mark is of another run of the system, for a while."""

    def __init__(self, marks: Marks, table: str) -> None:
        self._marks, self._table = marks, table
        self._before = marks.read(table)

    def __enter__(self) -> None:
        assert self._before is not None
        before = self._before
        self._marks.update(self._table, lambda _: replace(before, system="another"))

    def __exit__(self, *_: object) -> None:
        assert self._before is not None
        before = self._before
        self._marks.update(self._table, lambda _: before)


def test_a_table_without_any_whole_version_does_not_stop_the_others(
    store: VectorStore,
    home: Path,
    vectorize_here: Vectorize,
) -> None:
    other = store.ensure_collection("other", spec()).physical
    store.upsert("other", many(2))
    physical = store.collection(COLLECTION).physical
    store.upsert(COLLECTION, many(3))
    store.close()
    for version in versions(_directory(home), physical):
        _empty(manifest_file(_directory(home), physical, version))
    again = _opened(home)
    assert [each.name for each in again.collections()] == ["other"]
    assert list(again.damaged()) == [physical]
    with pytest.raises(DamagedCollectionError):
        again.count(COLLECTION)
    listed = vectorize_here("collections", "list", "--json")
    assert [each["name"] for each in listed.json] == ["other"]
    assert f"{physical} is damaged" in listed.err
    assert listed.code == 1
    doctor = [each for each in vectorize_here("doctor", "--json").json if each["name"] == "store"]
    assert [each["status"] for each in doctor] == ["ok", "error"]
    assert f"vectorize collections drop {physical}" in doctor[1]["remedy"]
    assert vectorize_here("collections", "drop", physical, "--yes").code == 0
    assert not _opened(home).damaged()
    assert [each.physical for each in _opened(home).collections()] == [other]
    assert _opened(home).ensure_collection(COLLECTION, spec()).physical == physical


@pytest.mark.parametrize("all_of_them", [False, True])
def test_damaged_aliases_do_not_stop_the_collections(store: VectorStore, home: Path, all_of_them: bool) -> None:
    store.upsert(COLLECTION, many(3))
    store.ensure_collection("other", spec())
    physical = store.collection(COLLECTION).physical
    store.close()
    found = versions(_directory(home), "_aliases")
    for version in found if all_of_them else found[:1]:
        _empty(manifest_file(_directory(home), "_aliases", version))
    again = _opened(home)
    assert {each.physical for each in again.collections()} >= {physical}
    if all_of_them:
        with pytest.raises(CollectionNotFoundError):
            again.count(COLLECTION)
    assert again.ensure_collection(COLLECTION, spec()).physical == physical
    assert again.ensure_collection("other", spec()).name == "other"
    assert again.count(COLLECTION) == 3


def test_a_version_that_is_being_written_is_not_taken_for_damaged(
    store: VectorStore, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writing = threading.Thread(target=lambda: [store.upsert(COLLECTION, many(n + 1)) for n in range(30)])
    writing.start()
    looks = 0
    while writing.is_alive() or looks == 0:
        assert not _opened(home).damaged()
        looks += 1
    writing.join()
    assert len(stored(store)) == 30
    assert "damaged" not in caplog.text


def test_what_the_disk_refuses_is_not_acknowledged_and_does_not_count(
    store: VectorStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system reports such a failure once: a second attempt would succeed without the data."""
    store.upsert(COLLECTION, many(3))
    store.flush()
    store.upsert(COLLECTION, many(6).slice(3))

    def refused(path: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(durable_files, "sync", refused)
        with pytest.raises(StoreError, match="Input/output error"):
            store.flush()
    store.flush()
    assert len(stored(store)) == len(stored(_opened(home))) == 3
    assert store.upsert(COLLECTION, many(6)).inserted == 3
    store.flush()
    assert len(stored(_opened(home))) == 6


def _is_on_the_disk(home: Path, table: str) -> bool:
    mark = Marks(_directory(home)).read(table)
    return mark is not None and mark.version == versions(_directory(home), table)[0]


def test_what_another_process_has_written_is_flushed_by_whoever_relies_on_it(store: VectorStore, home: Path) -> None:
    physical = store.collection(COLLECTION).physical
    again = _opened(home)
    assert again.count(COLLECTION) == 0
    store.upsert(COLLECTION, many(3))
    again.flush()
    assert not _is_on_the_disk(home, physical), "nobody said that anything relies on it"
    again.flush(["missing", COLLECTION])
    assert _is_on_the_disk(home, physical)
    store.upsert(COLLECTION, many(6))
    again.set_alias("other", physical)
    assert _is_on_the_disk(home, physical)
    store.close()


def test_a_collection_that_was_made_by_a_killed_process_is_durable_once_it_is_ensured(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Durability, "flush", lambda *_: None)
        _opened(home).ensure_collection(COLLECTION, spec())
    physical = _opened(home).collection(COLLECTION).physical
    assert not _is_on_the_disk(home, physical)
    _opened(home).ensure_collection(COLLECTION, spec())
    assert _is_on_the_disk(home, physical)
    assert _is_on_the_disk(home, "_aliases")


@pytest.mark.parametrize("writes", [False, True])
def test_what_the_disk_refused_of_another_process_is_not_acknowledged(
    store: VectorStore, home: Path, monkeypatch: pytest.MonkeyPatch, writes: bool
) -> None:
    """Nor waited for: a batch that was made of rows which are put aside now would be written without them."""
    again = _opened(home)
    store.upsert(COLLECTION, many(3))
    assert again.count(COLLECTION) == 3
    if writes:
        again.upsert(COLLECTION, many(6).slice(3))

    def refused(path: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(durable_files, "sync", refused)
        with pytest.raises(StoreError, match="No space left on device"):
            store.flush()
    with pytest.raises(StoreError, match="not certain to be on the disk") as caught:
        again.flush([COLLECTION])
    assert not isinstance(caught.value, StoreUnavailableError)
    assert again.count(COLLECTION) == 0
    assert again.upsert(COLLECTION, many(6)).inserted == 6
    again.flush([COLLECTION])
    assert len(stored(_opened(home))) == 6
