"""A collection gets another model under a load of searches and writes that never pauses: no query fails or finds
nothing, nothing that was acknowledged is lost, neither by the switch nor by the rollback.
"""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.pipeline.generations.two_models import COLLECTION, NEW, OLD, Writers, installed, vector_of
from tests.stores.weaviate_clients import emptied
from vectorize_pipelines.pipeline.generations import lifecycle as switching
from vectorize_pipelines.pipeline.writing import write_batch
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores.filters.expressions import In
from vectorize_pipelines.stores.weaviate.store import WeaviateStore

THERE_ALWAYS = {f"always {n}": f"text {n} that nobody touches" for n in range(150)}
WRITERS = SEARCHERS = 2
#: Of each thread, between two changes of the collection.
ROUNDS = 5
PATIENCE_SECONDS = 60


@pytest.fixture(params=["lancedb", pytest.param("weaviate", marks=pytest.mark.weaviate)])
def writers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Writers]:
    if request.param == "lancedb":
        yield installed(tmp_path)
        return
    weaviate: StoreSettings = request.getfixturevalue("weaviate")
    with closing(WeaviateStore(emptied(weaviate))) as store:
        yield installed(tmp_path, store, VECTORIZE_STORE__KIND="weaviate")


class Load:
    """Threads that search and write until they are told to stop, each with connections of its own."""

    def __init__(self, writers: Writers):
        self.writers = writers
        self.acknowledged: dict[str, str] = {}
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._rounds = [0] * (WRITERS + SEARCHERS)
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, args=(number, self._write if number < WRITERS else self._search))
            for number in range(WRITERS + SEARCHERS)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self) -> None:
        """Returns once every thread has done some more rounds, or one has failed."""
        with self._changed:
            wanted = [rounds + ROUNDS for rounds in self._rounds]
            done = self._changed.wait_for(
                lambda: self.errors or all(a >= b for a, b in zip(self._rounds, wanted, strict=True)), PATIENCE_SECONDS
            )
        assert done, "the load stands still"
        assert not self.errors, self.errors

    def _run(self, number: int, rounds: Callable[[int], Iterator[None]]) -> None:
        try:
            for _ in rounds(number):
                with self._changed:
                    self._rounds[number] += 1
                    self._changed.notify_all()
                if self._stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 (looked at by the test's own thread)
            with self._changed:
                self.errors.append(error)
                self._changed.notify_all()

    def _search(self, number: int) -> Iterator[None]:
        """As `vectorize search` does it: the query is encoded by the model of what is then searched."""
        store, names = self.writers.store, list(THERE_ALWAYS)
        chosen = random.Random(number)
        while True:
            name = chosen.choice(names)
            found = store.collection(COLLECTION)
            query = vector_of(THERE_ALWAYS[name], found.dimension)
            hits = store.search(found.physical, query, 3).to_pylist()
            assert len(hits) == 3
            assert hits[0]["source_id"] == name
            assert store.count(COLLECTION) >= len(THERE_ALWAYS)
            yield

    def _write(self, number: int) -> Iterator[None]:
        """Runs of a few batches each, by the model that the collection has when the run begins."""
        writers, chosen = self.writers, random.Random(number)
        mine: dict[str, str] = {}
        for run in itertools.count():
            dimension = writers.store.collection(COLLECTION).dimension
            with closing(writers.mirrors()) as mirrors:
                for count in range(4):
                    texts = {f"writer {number} item {chosen.randrange(40)}": f"{run}.{count}.{n}" for n in range(3)}
                    gone = [name for name in mine if name not in texts][:1]
                    stale = [In("source_id", tuple(gone))] if gone else []
                    write_batch(mirrors, writers.batch(texts, stale=stale, dimension=dimension))
                    mine.update(texts)
                    self.acknowledged.update(texts)
                    for name in gone:
                        del mine[name], self.acknowledged[name]
                    yield


@pytest.mark.slow
def test_no_query_fails_and_nothing_is_lost_by_switch_and_rollback(writers: Writers) -> None:
    writers.write(THERE_ALWAYS)
    with Load(writers) as load, closing(writers.generations()) as generations:
        load.goes_on()
        writers.reembed()
        load.goes_on()
        for turn in (switching.switch, switching.rollback):
            now, _ = turn(writers.settings, writers.store, generations, COLLECTION)
            assert writers.store.collection(COLLECTION).physical == now.physical
            load.goes_on()
    assert not load.errors, load.errors
    expected = {**THERE_ALWAYS, **load.acknowledged}
    assert len(expected) > len(THERE_ALWAYS)
    for dimension in (OLD, NEW):
        assert writers.texts(writers.physical(dimension)) == expected
    assert writers.texts() == expected
