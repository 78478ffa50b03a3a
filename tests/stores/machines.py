"""Writers on several machines, for tests of LanceDB in an object store: processes with a home of their own each.

They share the bucket and the database that the settings name, and nothing else.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

import pytest

from tests.stores.writers import BATCH_ROWS
from vectorize_pipelines.errors import StoreUnavailableError, VectorizeError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import leases
from vectorize_pipelines.state.held_locks import LockLostError
from vectorize_pipelines.state.table_locks import TableLocks
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.conformance.records import COLLECTION, many
from vectorize_pipelines.stores.filters.expressions import And
from vectorize_pipelines.stores.lancedb.aliases import Aliases
from vectorize_pipelines.stores.lancedb.catalogue import Catalogue
from vectorize_pipelines.stores.lancedb.writing import RowWriter

#: How long the leases of these processes last, which none must lose but the one that is stopped.
LEASE_SECONDS = 4.0
#: The collection that `stall` deletes from, and the alias that it turns.
OTHER, ALIAS = "other", "second-name"


def opened(settings: Settings) -> VectorStore:
    """Return the store of an installation, with its locks."""
    return open_store(settings.store, settings.home, TableLocks(settings))


def write_batches(settings: Settings, numbers: Iterable[int], answers: Connection) -> None:
    """Write batches, each again as long as another writer is in the way, and answer each one's number."""
    leases.LEASE_SECONDS = LEASE_SECONDS
    store = opened(settings)
    for number in numbers:
        _until_done(store, number)
        answers.send(number)
    store.maintain(COLLECTION)
    store.close()


def _until_done(store: VectorStore, number: int) -> None:
    while True:
        try:
            store.upsert(COLLECTION, many(BATCH_ROWS, first=number * BATCH_ROWS))
        except (StoreUnavailableError, LockLostError):
            continue
        return


def stall(settings: Settings, checked: bool, physical: str, answers: Connection) -> None:
    """Stop this process in the middle of a write, a deletion and the turning of an alias; answer how they ended.

    It stops when all three are about to make certain of their locks, or, if `checked`, have just done so.
    """
    leases.LEASE_SECONDS = LEASE_SECONDS
    store = opened(settings)
    store.count(COLLECTION)
    store.count(OTHER)
    everything: dict[str, Callable[[], object]] = {
        "upsert": lambda: store.upsert(COLLECTION, many(BATCH_ROWS)),
        "delete": lambda: store.delete(OTHER, And(())),
        "alias": lambda: store.set_alias(ALIAS, physical),
    }
    ends: dict[str, str] = {}
    stopping = threading.Barrier(len(everything), action=lambda: os.kill(os.getpid(), signal.SIGSTOP))
    with pytest.MonkeyPatch.context() as patch:
        moments = ((RowWriter, "merge"), (RowWriter, "delete"), (Aliases, "point"))
        for owner, method in moments if checked else ((Catalogue, "writing"),):
            patch.setattr(owner, method, _after(stopping, getattr(owner, method)))
        threads = [threading.Thread(target=_ended, args=(name, call, ends)) for name, call in everything.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    answers.send(ends)
    store.close()


def _after(stopping: threading.Barrier, method: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, **named: Any) -> Any:
        stopping.wait()
        return method(*arguments, **named)

    return called


def _ended(name: str, call: Callable[[], object], ends: dict[str, str]) -> None:
    try:
        call()
    except VectorizeError as error:
        ends[name] = type(error).__name__
    else:
        ends[name] = "done"
