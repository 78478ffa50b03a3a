"""Weaviate, or the process that writes to it, killed in the middle of a write: every row is found afterwards.

The server stores an object, its inverted index and its vector index one after another. Killed, it comes back with rows
that some queries do not find, and takes the same row, sent again, for one that it has already.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.attacks.weaviate_rows import DIMENSION, ROWS, WRITER, physical, rows
from tests.forks import Fork
from tests.servers.weaviate import Server
from vectorize_pipelines.errors import StoreUnavailableError
from vectorize_pipelines.pipeline.outage import StoreRetry
from vectorize_pipelines.pipeline.writing import DirectWriter
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.held_locks import check_run
from vectorize_pipelines.state.write_journal import WriteJournal
from vectorize_pipelines.stores.conformance.records import COLLECTION, spec
from vectorize_pipelines.stores.contents import vectors_of
from vectorize_pipelines.stores.filters.expressions import In
from vectorize_pipelines.stores.weaviate.store import WeaviateStore

TOGETHER = 150


@pytest.fixture(scope="module")
def server(weaviate_program: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Killed and started again by each test; empty when a test begins."""
    with Server(tmp_path_factory.mktemp("weaviate")) as server:
        yield server


@pytest.fixture
def settings(home: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("VECTORIZE_STORE__KIND", "weaviate")
    monkeypatch.setenv("VECTORIZE_STORE__URL", server.url)
    monkeypatch.setenv("VECTORIZE_STORE__GRPC_PORT", str(server.grpc_port))
    monkeypatch.setenv("VECTORIZE_STORE__WEAVIATE__RETRIES", "0")
    return load_settings()


@pytest.fixture
def store(settings: Settings) -> Iterator[WeaviateStore]:
    store = WeaviateStore(settings.store)
    store.ensure_collection(COLLECTION, spec(dimension=DIMENSION))
    yield store
    store.drop(physical(store))
    store.close()


def batches() -> Iterator[pa.Table]:
    for start in range(0, ROWS, TOGETHER):
        yield rows().slice(start, TOGETHER)


def hidden(store: WeaviateStore, records: pa.Table) -> tuple[set[str], set[str]]:
    """The ids that a filter does not find, and those that a search by their own vector does not."""
    ids = records["id"].to_pylist()
    by_filter = set(store.fetch(COLLECTION, In("id", tuple(ids)), ("id",))["id"].to_pylist())
    by_search: set[str] = set()
    for id_, vector in zip(ids, vectors_of(records), strict=True):
        by_search |= {id_} & set(store.search(COLLECTION, vector, 5)["id"].to_pylist())
    return set(ids) - by_filter, set(ids) - by_search


def kill_once_begun(server: Server, settings: Settings, name: str, seconds: float) -> threading.Thread:
    """Kills the server so long after a write to it was noted, and starts it again."""

    def kill() -> None:
        journal = WriteJournal.open(settings)
        while not journal.left(name, WRITER):
            pass  # a write is about to begin
        journal.close()
        threading.Event().wait(seconds)
        server.kill()
        server.start()

    thread = threading.Thread(target=kill, name="killer")
    thread.start()
    return thread


def test_a_server_killed_again_and_again_during_a_load_hides_no_row_from_any_query(
    settings: Settings, store: WeaviateStore, server: Server
) -> None:
    name, chance = physical(store), random.Random(3)
    writes, outage = DirectWriter(settings, store), StoreRetry(seconds=120, first_pause=0.05)
    for number, batch in enumerate(batches()):
        put = partial(writes.put, name, WRITER, batch, (), check_run)
        if number % 2 == 0:
            outage.call(put)
            continue
        killer = kill_once_begun(server, settings, name, chance.uniform(0, 0.2))
        outage.call(put)
        killer.join()
    writes.close()
    assert store.count(COLLECTION) == ROWS
    assert hidden(store, rows()) == (set(), set())


def test_rows_that_were_acknowledged_outlive_the_server(store: WeaviateStore, server: Server) -> None:
    store.upsert(COLLECTION, rows())
    server.kill()
    server.start()
    assert hidden(store, rows()) == (set(), set())


def _write_all() -> None:
    settings = load_settings()
    store = WeaviateStore(settings.store)
    DirectWriter(settings, store).put(physical(store), WRITER, rows(), (), check_run)


def test_what_a_killed_writer_left_is_found_after_the_next_write(settings: Settings, store: WeaviateStore) -> None:
    name = physical(store)
    journal = WriteJournal.open(settings)
    for rows_there in (1, 300, 600):  # that the server has when the writer is killed
        writer = Fork(_write_all)
        while store.count(COLLECTION) < rows_there and writer.poll() is None:
            pass  # it is writing
        writer.kill()
        left = journal.left(name, WRITER)
        next_run = DirectWriter(settings, store)
        next_run.repair_left(name, WRITER)
        next_run.close()
        assert journal.left(name, WRITER) == []
        there = store.fetch(COLLECTION, In("id", tuple(rows()["id"].to_pylist())), ("id", "vector"))
        assert there.num_rows == store.count(COLLECTION)
        assert not left or set(left) == set(rows()["id"].to_pylist())
        assert hidden(store, there) == (set(), set())
        store.delete(COLLECTION, In("id", tuple(there["id"].to_pylist())))
    journal.close()


def test_force_has_everything_indexed_again(settings: Settings, store: WeaviateStore, server: Server) -> None:
    """Also what a version of this project without a journal has left."""

    def kill() -> None:
        while not store.count(COLLECTION):
            pass  # the load is about to begin
        server.kill()
        server.start()

    killer = threading.Thread(target=kill)
    killer.start()
    with suppress(StoreUnavailableError):
        store.upsert(COLLECTION, rows())
    killer.join()
    writes = DirectWriter(settings, store)
    writes.put(physical(store), WRITER, rows(), (), check_run, reindex=True)
    writes.close()
    assert hidden(store, rows()) == (set(), set())
    table = store.fetch(COLLECTION, In("id", tuple(rows()["id"].to_pylist())), ("id", "vector"))
    places = {id_: place for place, id_ in enumerate(table["id"].to_pylist())}
    order = [places[id_] for id_ in rows()["id"].to_pylist()]
    np.testing.assert_array_equal(vectors_of(table)[order], vectors_of(rows()))
