"""LanceDB in an object store that several machines write to, which share a PostgreSQL and no disk."""

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.servers.s3 import Server
from tests.stores import machines
from tests.stores.machines import ALIAS, OTHER, opened
from tests.stores.writers import BATCH_ROWS
from vectorize_pipelines.errors import CollectionNotFoundError, StoreError
from vectorize_pipelines.settings import Settings, StoreSettings, load_settings
from vectorize_pipelines.state import leases
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.table_locks import TableLocks
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.conformance.records import COLLECTION, many, spec
from vectorize_pipelines.stores.lancedb.location import Location
from vectorize_pipelines.stores.lancedb.maintenance import Maintenance
from vectorize_pipelines.stores.lancedb.store import LanceDBStore

PROCESSES = multiprocessing.get_context("spawn")
BATCHES = 10
DEADLINE_SECONDS = 120.0

Machine = Callable[[str], Settings]
Start = Callable[..., tuple[BaseProcess, Connection]]


@pytest.fixture
def machine(bucket_store: StoreSettings, postgresql: str, tmp_path: Path) -> Machine:
    """Makes the settings of a machine of this name."""

    def made(name: str) -> Settings:
        store = bucket_store.model_dump()
        return load_settings({}, tmp_path, home=tmp_path / name, store=store, ledger={"url": postgresql})

    return made


@pytest.fixture
def store(machine: Machine) -> Iterator[VectorStore]:
    with closing(opened(machine("here"))) as store:
        store.ensure_collection(COLLECTION, spec())
        yield store


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that gets these arguments, and a connection for its answers."""
    with ExitStack() as ends:

        def started(function: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
            answers, to_us = PROCESSES.Pipe(duplex=False)
            process = PROCESSES.Process(target=function, args=(*arguments, to_us), daemon=True)
            process.start()
            ends.callback(process.kill)  # one that is stopped would be waited for without end
            to_us.close()
            return process, answers

        yield started


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.05)


def _texts(store: VectorStore, name: str = COLLECTION) -> list[tuple[str, str]]:
    rows = [row for batch in store.scan(name, ["id", "text"]) for row in batch.to_pylist()]
    return sorted((row["id"], row["text"]) for row in rows)


def test_writers_that_are_killed_and_stopped_lose_nothing_and_write_nothing_twice(
    store: VectorStore, machine: Machine, start: Start, tmp_path: Path
) -> None:
    moments = random.Random(11)
    numbers = list(range(BATCHES))
    killed, from_killed = start(machines.write_batches, machine("killed"), numbers)
    stopped, from_stopped = start(machines.write_batches, machine("stopped"), numbers[::-1])
    going_on, from_going_on = start(machines.write_batches, machine("going on"), numbers)
    assert stopped.pid is not None
    for process, answers, number in ((killed, from_killed, signal.SIGKILL), (stopped, from_stopped, signal.SIGSTOP)):
        assert answers.poll(DEADLINE_SECONDS)
        answers.recv()
        answers.poll(moments.uniform(0, 0.1))  # somewhere in the next write
        assert process.pid is not None
        os.kill(process.pid, number)
    assert [from_going_on.recv() for _ in numbers] == numbers
    going_on.join(DEADLINE_SECONDS)
    database = Database.open(machine("here"))
    _until(lambda: leases.held_below(database, "store/") == [])  # whatever the stopped one held has lapsed
    database.close()
    os.kill(stopped.pid, signal.SIGCONT)
    for process in (killed, stopped):
        process.join(DEADLINE_SECONDS)
    assert (going_on.exitcode, stopped.exitcode, killed.exitcode) == (0, 0, -signal.SIGKILL)
    assert _texts(store) == sorted((row["id"], row["text"]) for row in many(BATCHES * BATCH_ROWS).to_pylist())
    assert not [*tmp_path.rglob("*.lance")], "nothing of the tables lies on a disk"


@pytest.mark.parametrize("checked", [False, True], ids=["before it checked its locks", "after it checked its locks"])
def test_a_process_that_was_stalled_past_its_leases_writes_nothing(
    store: VectorStore, machine: Machine, start: Start, checked: bool
) -> None:
    ours, theirs = many(BATCH_ROWS, seed=1), many(BATCH_ROWS)
    store.ensure_collection(OTHER, spec())
    first = store.collection(COLLECTION).physical
    second = store.ensure_collection(COLLECTION, spec(), aliased=False, edition=2).physical
    store.set_alias(ALIAS, store.collection(OTHER).physical)
    store.upsert(OTHER, theirs)
    process, answers = start(machines.stall, machine("stalled"), checked, first)
    assert process.pid is not None
    stalled = psutil.Process(process.pid)
    _until(lambda: stalled.status() == psutil.STATUS_STOPPED)
    for name in (COLLECTION, OTHER):  # waits until the leases have lapsed
        store.upsert(name, ours)
    store.set_alias(ALIAS, second)
    stalled.resume()
    refused = "StoreUnavailableError" if checked else "LeaseLostError"
    assert answers.recv() == dict.fromkeys(("upsert", "delete", "alias"), refused)
    process.join(DEADLINE_SECONDS)
    for name in (COLLECTION, OTHER):
        found = [vector for batch in store.scan(name, ["id", "vector"]) for vector in batch.to_pylist()]
        assert Counter(row["id"] for row in found) == Counter(ours["id"].to_pylist())
        by_id = {row["id"]: row["vector"] for row in found}
        for row in ours.select(["id", "vector"]).to_pylist():
            np.testing.assert_allclose(by_id[row["id"]], row["vector"])
    assert store.collection(ALIAS).physical == second


def test_generations_maintenance_and_dropping_are_seen_from_another_machine(
    store: VectorStore, machine: Machine, s3: Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = machine("there")
    limits = Maintenance(fragments=2, rows_per_fragment=10**9, scalar_index_rows=1, vector_index_rows=300, apart_rows=1)
    there = LanceDBStore(Location.of(settings.store, settings.home), maintenance=limits)
    there.use_table_locks(TableLocks(settings))
    first = store.collection(COLLECTION).physical
    second = there.ensure_collection(COLLECTION, spec(), aliased=False, edition=2).physical
    for number in range(4):
        there.upsert(second, many(100, first=number * 100))
    there.set_alias(COLLECTION, second)
    assert store.count(COLLECTION) == 400
    monkeypatch.setattr("vectorize_pipelines.stores.lancedb.maintenance.RETENTION", timedelta(0))
    figures = there.maintain(COLLECTION)
    assert (figures["compacted"], figures["fragments"], figures["indexes_built"]) == (1, 1, 4)
    assert not store.searches_exactly(COLLECTION)
    manifests = s3.keys(bucket, f"vectors/{second}.lance/_versions/")
    assert len(manifests) < 4, "old versions are gone"
    wanted = many(400)
    hits = store.search(COLLECTION, np.array(wanted["vector"][7].as_py(), np.float32), 1)
    assert hits["id"].to_pylist() == [wanted["id"][7].as_py()]
    store.drop(first)
    assert [each.physical for each in there.collections()] == [second]
    there.drop(second)
    with pytest.raises(CollectionNotFoundError):
        store.count(COLLECTION)
    assert s3.keys(bucket, f"vectors/{second}") == []
    there.close()


def test_what_a_killed_drop_has_left_is_no_collection_and_makes_room_for_a_new_one(
    store: VectorStore, machine: Machine, s3: Server, bucket: str
) -> None:
    store.upsert(COLLECTION, many(10))
    physical = store.collection(COLLECTION).physical
    for key in s3.keys(bucket, f"vectors/{physical}.lance/_versions/"):
        s3.delete(bucket, key)
    with closing(opened(machine("there"))) as there:
        assert there.collections() == []
        assert there.damaged() == {}
        assert there.ensure_collection(COLLECTION, spec()).physical == physical
        assert there.count(COLLECTION) == 0
        assert there.upsert(COLLECTION, many(10)).inserted == 10


def test_without_locks_it_can_only_be_read(store: VectorStore, bucket_store: StoreSettings, tmp_path: Path) -> None:
    store.upsert(COLLECTION, many(10))
    with closing(open_store(bucket_store, tmp_path)) as reader:
        assert reader.count(COLLECTION) == 10
        for write in (
            lambda: reader.upsert(COLLECTION, many(1)),
            lambda: reader.drop(reader.collection(COLLECTION).physical),
            lambda: reader.ensure_collection("new", spec()),
        ):
            with pytest.raises(StoreError, match=r"only be read: pass them to open_store, as TableLocks"):
                write()
