"""What the tests of stores run in processes of their own, started with `spawn`."""

import itertools
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa

from vectorize_pipelines.errors import StoreUnavailableError
from vectorize_pipelines.settings import StoreSettings, load_settings
from vectorize_pipelines.state.table_locks import TableLocks
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore, Written
from vectorize_pipelines.stores.conformance.records import COLLECTION, many, spec
from vectorize_pipelines.stores.lancedb.location import Location
from vectorize_pipelines.stores.lancedb.store import LanceDBStore

BATCH_ROWS = 50


def ensure_and_report(home: Path, start: Connection, answers: Connection) -> None:
    """Creates the collection as soon as it is told to and answers its physical name."""
    store = open_store(StoreSettings(), home)
    answers.send("ready")
    start.recv()
    answers.send(store.ensure_collection(COLLECTION, spec()).physical)


def upsert_batches(home: Path, machine: str | None, batches: int, answers: Connection) -> None:
    """Writes the same batches as every other writer does, and answers how many rows it inserted.

    Writers of several `machines` share no locks, as those of an object store from several installations.
    """
    if machine is None:
        store: VectorStore = open_store(StoreSettings(), home)
    else:
        store = LanceDBStore(Location(str(home / "lancedb")))
        store.use_table_locks(TableLocks(load_settings({}, home=home / machine)))
    inserted = 0
    for number in range(batches):
        inserted += upsert_until_done(store, many(BATCH_ROWS, first=number * BATCH_ROWS)).inserted
    answers.send(inserted)


def upsert_until_done(store: VectorStore, records: pa.Table) -> Written:
    """Write records, again as long as another writer is in the way."""
    while True:
        try:
            return store.upsert(COLLECTION, records)
        except StoreUnavailableError:
            continue


def upsert_until_killed(home: Path, first_batch: int, answers: Connection) -> None:
    """Writes batch after batch, with maintenance in between, and answers each one's number once it is stored."""
    store = open_store(StoreSettings(), home)
    number = first_batch
    while True:
        store.upsert(COLLECTION, many(BATCH_ROWS, first=number * BATCH_ROWS))
        answers.send(number)
        number += 1
        if number % 5 == 0:
            store.maintain(COLLECTION)


def upsert_to_qdrant_until_killed(home: Path, answers: Connection) -> None:
    """Writes batch after batch to Qdrant's local mode and answers each one's number once it is stored."""
    from vectorize_pipelines.stores.qdrant.store import QdrantStore

    store = QdrantStore.open(StoreSettings(kind="qdrant"), home)
    store.ensure_collection(COLLECTION, spec())
    for number in itertools.count():
        store.upsert(COLLECTION, many(BATCH_ROWS, first=number * BATCH_ROWS))
        answers.send(number)
