"""LanceDB under the conformance suite, and what only it promises: several processes on one directory, writers that
are killed, maintenance beside readers, and failures that say what to do."""

import dataclasses
import errno
import json
import multiprocessing
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import PIPE
from typing import Any

import lance
import numpy as np
import psutil
import pyarrow as pa
import pytest

from tests.stores import writers
from vectorize_pipelines.core.records import record_schema
from vectorize_pipelines.errors import CollectionNotFoundError, ModelMismatchError, SettingsError, StoreError
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores import conformance, open_store
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.conformance.records import COLLECTION, many, row, spec, stored, table
from vectorize_pipelines.stores.filters.expressions import Equal, In
from vectorize_pipelines.stores.lancedb.connection import connect
from vectorize_pipelines.stores.lancedb.durability import Durability
from vectorize_pipelines.stores.lancedb.location import Location
from vectorize_pipelines.stores.lancedb.maintenance import Maintenance, MaintenanceWork
from vectorize_pipelines.stores.lancedb.store import LanceDBStore

EAGER = Maintenance(
    fragments=2, rows_per_fragment=10**9, unindexed_rows=1, scalar_index_rows=1, vector_index_rows=300, retrain_growth=2
)
PROCESSES = multiprocessing.get_context("spawn")


class _OnLanceDB:
    @pytest.fixture
    def open_again(self, tmp_path: Path) -> Callable[[], VectorStore]:
        return lambda: open_store(StoreSettings(), tmp_path)


class TestCollections(_OnLanceDB, conformance.Collections):
    pass


class TestRows(_OnLanceDB, conformance.Rows):
    pass


class TestSearch(_OnLanceDB, conformance.Search):
    pass


class TestFilters(_OnLanceDB, conformance.Filters):
    pass


class TestHistories(_OnLanceDB, conformance.Histories):
    pass


class TestHistoriesWithEagerMaintenance(conformance.Histories):
    """Every `maintain` compacts and indexes, so that the histories run over indexes too."""

    @pytest.fixture
    def open_again(self, tmp_path: Path) -> Callable[[], VectorStore]:
        return lambda: _eager(tmp_path)


def _eager(home: Path) -> LanceDBStore:
    return LanceDBStore(Location.folder(home / "lancedb"), maintenance=EAGER)


@pytest.fixture
def store(tmp_path: Path) -> VectorStore:
    store = open_store(StoreSettings(), tmp_path)
    store.ensure_collection(COLLECTION, spec())
    return store


@pytest.mark.parametrize("length", [249, 250, 255, 5000])
def test_a_name_that_no_folder_can_have_is_that_of_no_collection(store: VectorStore, length: int) -> None:
    with pytest.raises(CollectionNotFoundError):
        store.collection("a" * length)


def _started(function: Callable[..., None], *arguments: Any) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    answers, to_us = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=function, args=(*arguments, to_us), daemon=True)
    process.start()
    to_us.close()
    return process, answers


# ---- several processes


@pytest.mark.parametrize("machines", [(None, None), ("first", "second")], ids=["locked", "unlocked"])
@pytest.mark.slow
def test_processes_that_write_the_same_ids_store_each_once(
    store: VectorStore, tmp_path: Path, machines: tuple[str | None, ...]
) -> None:
    batches = 12
    running = [_started(writers.upsert_batches, tmp_path, machine, batches) for machine in machines]
    inserted = sum(answers.recv() for _, answers in running)
    for process, _ in running:
        process.join()
    assert inserted == len(stored(store)) == batches * writers.BATCH_ROWS


@pytest.mark.slow
def test_two_processes_that_ensure_a_collection_at_once_make_one(tmp_path: Path) -> None:
    starts, running = [], []
    for _ in range(2):
        start, to_them = PROCESSES.Pipe(duplex=False)
        starts.append(to_them)
        running.append(_started(writers.ensure_and_report, tmp_path, start))
    assert [answers.recv() for _, answers in running] == ["ready", "ready"]
    for to_them in starts:
        to_them.send("go")
    physical = {answers.recv() for _, answers in running}
    for process, _ in running:
        process.join()
    collections = open_store(StoreSettings(), tmp_path).collections()
    assert [(one.name, {one.physical}) for one in collections] == [(COLLECTION, physical)]


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_whole_batches(store: VectorStore, tmp_path: Path) -> None:
    moments = random.Random(5)
    confirmed = -1
    for _ in range(2):
        process, answers = _started(writers.upsert_until_killed, tmp_path, confirmed + 1)
        for _ in range(moments.randint(1, 12)):
            confirmed = answers.recv()
        # Somewhere in the next write, or in the maintenance before it.
        answers.poll(moments.uniform(0, 0.03))
        process.kill()
        process.join()
        while answers.poll() and (answer := _last(answers)) is not None:
            confirmed = answer
        rows = len(stored(store))
        assert rows % writers.BATCH_ROWS == 0
        assert confirmed + 1 <= rows // writers.BATCH_ROWS <= confirmed + 2
        assert store.count(COLLECTION) == rows
    again = store.upsert(COLLECTION, many(writers.BATCH_ROWS, first=0))
    assert again.updated == writers.BATCH_ROWS
    store.maintain(COLLECTION)
    assert len(stored(store)) == rows


def _last(answers: Connection) -> int | None:
    try:
        number: int = answers.recv()
    except EOFError:
        return None
    return number


def test_of_two_models_for_one_new_name_the_second_is_refused(tmp_path: Path) -> None:
    """Both find no collection, and wait for each other: the second must not turn the alias away from the first."""
    stores = [open_store(StoreSettings(), tmp_path) for _ in range(2)]
    specs = [spec(), spec("models/other", 8, "ffffffffffff")]

    def ensured(number: int) -> str:
        try:
            return stores[number].ensure_collection(COLLECTION, specs[number]).physical
        except ModelMismatchError:
            return "refused"

    with ThreadPoolExecutor(2) as pool:
        results = sorted(pool.map(ensured, range(2)))
    assert results == [stores[0].collection(COLLECTION).physical, "refused"]


def test_threads_that_write_the_same_ids_store_each_once(store: VectorStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda number: store.upsert(COLLECTION, many(30, first=10 * (number % 4))), range(16)))
    assert sum(one.inserted for one in written) == len(stored(store)) == 60


# ---- maintenance


def test_a_scan_reads_one_snapshot_whatever_happens_meanwhile(tmp_path: Path) -> None:
    store = _eager(tmp_path)
    store.ensure_collection(COLLECTION, spec())
    for first in range(0, 400, 40):
        store.upsert(COLLECTION, many(40, first=first))
    scan = store.scan(COLLECTION, ["id", "text"], batch_rows=10)
    seen = next(scan)["id"].to_pylist()
    assert store.maintain(COLLECTION)["compacted"] == 1
    store.delete(COLLECTION, In("item_index", (0, 1, 2, 3)))
    store.upsert(COLLECTION, many(40, first=400))
    store.maintain(COLLECTION)
    seen += [one for batch in scan for one in batch["id"].to_pylist()]
    assert sorted(seen) == sorted(many(400)["id"].to_pylist())
    assert store.count(COLLECTION) == 240


def test_maintenance_compacts_and_indexes_when_due_and_only_then(tmp_path: Path) -> None:
    store = _eager(tmp_path)
    store.ensure_collection(COLLECTION, spec())
    assert store.maintain(COLLECTION)["indexes_built"] == 0
    for first in range(0, 500, 100):
        store.upsert(COLLECTION, many(100, first=first))
    figures = store.maintain(COLLECTION)
    assert (figures["rows"], figures["fragments_before"], figures["fragments"]) == (500, 5, 1)
    assert figures["indexes_built"] == 4
    idle = store.maintain(COLLECTION)
    assert (idle["compacted"], idle["indexes_built"]) == (0, 0)
    store.upsert(COLLECTION, many(600, first=500))
    assert store.maintain(COLLECTION)["indexes_built"] == 1, "the vector index is trained anew"


@pytest.mark.slow
def test_a_large_collection_is_compacted_without_rewriting_what_was(tmp_path: Path) -> None:
    limits = Maintenance(fragments=10, rows_per_fragment=10**9, apart_rows=100)
    store = LanceDBStore(Location.folder(tmp_path / "lancedb"), maintenance=limits)
    physical = store.ensure_collection(COLLECTION, spec()).physical

    def files() -> set[str]:
        dataset = lance.dataset(str(tmp_path / "lancedb" / f"{physical}.lance"))
        return {file.path for fragment in dataset.get_fragments() for file in fragment.data_files()}

    for first in range(0, 36_000, 3_000):
        store.upsert(COLLECTION, _alike(3_000, first))
    assert store.maintain(COLLECTION)["compacted"] == 1
    large = files()
    assert 1 < len(large) < 6, "of 16,384 rows and more"
    for first in range(36_000, 36_600, 50):
        store.upsert(COLLECTION, _alike(50, first))
    assert store.maintain(COLLECTION)["compacted"] == 1
    assert files() > large
    assert len(files()) == len(large) + 1
    found = [one for batch in store.scan(COLLECTION, ["id"]) for one in batch["id"].to_pylist()]
    assert sorted(found) == _alike(36_600, 0)["id"].to_pylist()
    store.close()


def _alike(count: int, first: int) -> pa.Table:
    """Records that differ in nothing but their ids, which are in order; `many` would take seconds for so many."""
    ids = pa.array(f"{number:06}" for number in range(first, first + count))
    return many(1).take(pa.array([0] * count)).set_column(0, record_schema(4).field("id"), ids)


@pytest.mark.slow
def test_a_large_collection_keeps_its_indexes_through_compaction(tmp_path: Path) -> None:
    """pylance compacts, and brings up to date, indexes that LanceDB has made and goes on searching."""
    limits = dataclasses.replace(EAGER, apart_rows=1, fragments=5)
    store = LanceDBStore(Location.folder(tmp_path / "lancedb"), maintenance=limits)
    physical = store.ensure_collection(COLLECTION, spec(dimension=16)).physical
    records = many(1_000, dimension=16)
    store.upsert(COLLECTION, records.slice(0, 900))
    assert store.maintain(COLLECTION)["indexes_built"] == 4
    for first in range(900, 1_000, 10):
        store.upsert(COLLECTION, records.slice(first, 10))
    store.delete(COLLECTION, In("id", tuple(records["id"].to_pylist()[:100])))
    assert store.maintain(COLLECTION)["compacted"] == 1
    assert store.maintain(COLLECTION)["compacted"] == 0, "nothing is left to do"
    table = connect(Location.folder(tmp_path / "lancedb")).open_table(physical)
    assert {index.name: index.num_unindexed_rows for index in table.list_indices()} == dict.fromkeys(
        ("id_idx", "source_id_idx", "partition_idx", "vector_of_900"), 0
    )
    kept = records.slice(100)
    vectors = np.array(kept["vector"].to_pylist(), np.float32)
    for query in many(40, dimension=16, seed=1)["vector"].to_pylist():
        nearest = np.argsort(-(vectors @ np.array(query, np.float32)))[:10]
        found = store.search(COLLECTION, np.array(query, np.float32), 10)["id"].to_pylist()
        assert len(set(found) & {kept["id"][int(place)].as_py() for place in nearest}) >= 9
    assert store.count(COLLECTION, Equal("source_id", kept["source_id"][0].as_py())) > 0
    store.close()


def test_a_maintenance_process_that_died_while_it_waited_is_replaced(tmp_path: Path) -> None:
    limits = Maintenance(fragments=10, rows_per_fragment=10**9, apart_rows=1)
    store = LanceDBStore(Location.folder(tmp_path / "lancedb"), maintenance=limits)
    store.ensure_collection(COLLECTION, spec())
    before = set(psutil.Process().children())
    for first in range(0, 80, 10):
        store.upsert(COLLECTION, many(10, first=first))
    assert store.maintain(COLLECTION)["compacted"] == 0
    (waiting,) = set(psutil.Process().children()) - before
    waiting.kill()
    psutil.wait_procs([waiting])
    for first in range(80, 120, 10):
        store.upsert(COLLECTION, many(10, first=first))
    assert store.maintain(COLLECTION)["compacted"] == 1
    assert len(stored(store)) == 120
    store.close()
    assert set(psutil.Process().children()) <= before


def test_a_store_whose_last_rows_cannot_be_put_on_the_disk_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Maintenance(fragments=10, rows_per_fragment=10**9, apart_rows=1)
    store = LanceDBStore(Location.folder(tmp_path / "lancedb"), maintenance=limits)
    store.ensure_collection(COLLECTION, spec())
    before = set(psutil.Process().children())
    for first in range(0, 80, 10):
        store.upsert(COLLECTION, many(10, first=first))
    store.maintain(COLLECTION)
    assert set(psutil.Process().children()) > before, "a process waits for the next maintenance"

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Durability, "flush", fails)
    with pytest.raises(StoreError, match="putting what was written on the disk"):
        store.close()
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("abandoned", [False, True])
@pytest.mark.slow
def test_a_maintenance_process_ends_with_its_work_or_with_the_one_that_started_it(
    tmp_path: Path, abandoned: bool
) -> None:
    """Else it would go on after the table's lock was let go."""
    store = _eager(tmp_path)
    physical = store.ensure_collection(COLLECTION, spec()).physical
    for first in range(0, 30, 10):
        store.upsert(COLLECTION, many(10, first=first))
    work = MaintenanceWork(compact=True, keep_seconds=3600, scalar_indexes=(), vector_index=None, outgrown=())
    endless = "maintenance.carry_out_large = lambda *_: (print('begun', flush=True), time.sleep(3600)); "
    code = (
        "import time; from vectorize_pipelines.stores.lancedb import maintenance_process as maintenance; "
        f"{endless if abandoned else ''}maintenance.main()"
    )
    folder = str(tmp_path / "lancedb")
    place = {"uri": folder, "directory": folder, "options": {}}
    task = {"physical": physical, "work": dataclasses.asdict(work)}
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{json.dumps(place)}\n{json.dumps(task)}\n")
            process.stdin.flush()
            assert process.stdout.readline() == ("begun\n" if abandoned else "done\n")
            if abandoned:
                process.stdin.close()
            assert process.wait(60) == int(abandoned)
        finally:
            process.kill()


def test_an_indexed_collection_finds_the_same_neighbours(tmp_path: Path) -> None:
    store = _eager(tmp_path)
    store.ensure_collection(COLLECTION, spec(dimension=16))
    records = many(3_000, dimension=16)
    queries = many(40, dimension=16, seed=1)["vector"].to_pylist()
    store.upsert(COLLECTION, records)
    exact = [store.search(COLLECTION, np.array(query, np.float32), 10)["id"].to_pylist() for query in queries]
    assert store.maintain(COLLECTION)["indexes_built"] == 4
    found = [store.search(COLLECTION, np.array(query, np.float32), 10) for query in queries]
    recall = np.mean([len(set(ids) & set(hits["id"].to_pylist())) / 10 for ids, hits in zip(exact, found, strict=True)])
    assert recall >= 0.99
    vectors = dict(zip(records["id"].to_pylist(), records["vector"].to_pylist(), strict=True))
    for query, hits in zip(queries, found, strict=True):
        cosines = [float(np.dot(vectors[one], query)) for one in hits["id"].to_pylist()]
        np.testing.assert_allclose(hits["score"].to_numpy(), cosines, atol=1e-5)


def test_an_indexed_collection_finds_new_rows_and_few_rows(tmp_path: Path) -> None:
    store = _eager(tmp_path)
    store.ensure_collection(COLLECTION, spec())
    store.upsert(COLLECTION, many(3_000))
    store.maintain(COLLECTION)
    query = np.array([0, 0, 0, 1], np.float32)
    store.upsert(COLLECTION, table([row("new.txt", vector=[0.0, 0.0, 0.0, 1.0])]))
    assert store.search(COLLECTION, query, 1)["source_id"].to_pylist() == ["new.txt"]
    rare = Equal("source_id", "folder/77.txt")
    assert store.search(COLLECTION, query, 20, rare).num_rows == 8
    store.delete(COLLECTION, rare)
    assert store.search(COLLECTION, query, 20, rare).num_rows == 0


def test_old_versions_go_once_they_have_outlived_their_readers(
    store: VectorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in range(0, 40, 10):
        store.upsert(COLLECTION, many(10, first=first))
    versions = tmp_path / "lancedb" / f"{store.collection(COLLECTION).physical}.lance" / "_versions"
    assert store.maintain(COLLECTION)["compacted"] == 0
    monkeypatch.setattr("vectorize_pipelines.stores.lancedb.maintenance.RETENTION", timedelta(milliseconds=1))
    assert store.maintain(COLLECTION)["compacted"] == 1
    assert len(list(versions.glob("*.manifest"))) < 5
    assert len(stored(store)) == 40


# ---- opening, and failures


def test_an_unknown_kind_is_refused_with_those_installed(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'redis'.*lancedb"):
        open_store(StoreSettings(kind="redis"), tmp_path)


@pytest.mark.parametrize("url", ["http://localhost:6333", "db://cloud", "ftp://host/path"])
def test_a_url_that_is_not_for_lancedb_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match=r"store\.url"):
        open_store(StoreSettings(url=url), tmp_path)


def test_a_folder_can_be_given_as_path_or_url(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    by_path = open_store(StoreSettings(url=str(folder)), tmp_path)
    by_path.ensure_collection(COLLECTION, spec())
    by_url = open_store(StoreSettings(url=folder.as_uri()), tmp_path)
    assert by_url.collections() == by_path.collections()
    assert by_url.collection(COLLECTION).location == str(folder)


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("az://vectors/production/", "az://vectors/production"),
        ("az://account:secret@vectors/production", "az://vectors/production"),
        ("abfss://vectors@account.dfs.core.windows.net/production", "az://vectors/production"),
        ("abfss://vectors:secret@account.dfs.core.windows.net/production/", "az://vectors/production"),
        ("s3://vectors/production", "s3://vectors/production"),
    ],
)
def test_all_forms_of_a_uri_name_the_same_locks(uri: str, named: str) -> None:
    assert Location(uri).identity == named


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "lancedb").write_text("not a directory")
    with pytest.raises(StoreError, match=str(tmp_path / "lancedb")):
        open_store(StoreSettings(), tmp_path)


@pytest.mark.parametrize("part", ["data", "_versions"])
def test_a_damaged_table_is_named_with_what_to_do(store: VectorStore, tmp_path: Path, part: str) -> None:
    store.upsert(COLLECTION, many(10))
    folder = tmp_path / "lancedb" / f"{store.collection(COLLECTION).physical}.lance" / part
    for file in folder.iterdir():
        file.write_bytes(b"garbage")
    with pytest.raises(StoreError, match=rf"'{COLLECTION}' failed in {tmp_path}.*missing, damaged"):
        list(open_store(StoreSettings(), tmp_path).scan(COLLECTION, ["id", "text"]))


def test_tables_of_others_in_the_directory_are_left_alone(store: VectorStore, tmp_path: Path) -> None:
    import lancedb

    lancedb.connect(tmp_path / "lancedb").create_table("foreign", [{"a": 1}])
    assert [collection.name for collection in store.collections()] == [COLLECTION]
    for call in (store.collection, store.count, store.maintain):
        with pytest.raises(StoreError, match="not a collection"):
            call("foreign")


def test_metadata_stays_readable_for_other_programs(store: VectorStore, tmp_path: Path) -> None:
    import lancedb

    store.upsert(COLLECTION, table([row(metadata={"year": 2024})]))
    raw = lancedb.connect(tmp_path / "lancedb").open_table(store.collection(COLLECTION).physical).to_arrow()
    assert json.loads(raw["metadata"][0].as_py()) == {"year": 2024}
    assert raw.schema.names[0] == "id"
