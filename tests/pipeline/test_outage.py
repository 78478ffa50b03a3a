"""A store that is away: what was encoded waits, only the write is tried again, and nothing is lost or doubled."""

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.pipeline.absent_store import Away, fill, installation, load
from tests.pipeline.files.installation import COLLECTION, CountingEncoder, Installation
from tests.servers.weaviate import Server
from vectorize_pipelines.core.prefetch import prefetch
from vectorize_pipelines.encoders.base import Purpose, Vectors
from vectorize_pipelines.errors import ModelMismatchError, StoreError, StoreUnavailableError
from vectorize_pipelines.pipeline.batch import EmbeddingBatch
from vectorize_pipelines.pipeline.spill import Spill, SpillingRetry
from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.weaviate.store import WeaviateStore

pytestmark = pytest.mark.slow

PAUSE = 0.001


@dataclass(slots=True)
class Batches(EmbeddingStream):
    """A stream of given tables; remembers which were made, secured and acknowledged."""

    tables: Sequence[pa.Table]
    outage: SpillingRetry
    depth: int = 1
    collection: str = "numbers"
    model: str = "none"
    totals: Totals = field(default_factory=Totals)
    failures: list[Any] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    made: list[int] = field(default_factory=list)
    secured: list[int] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    _batches: Generator[EmbeddingBatch, None, None] | None = None

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        self._batches = prefetch(self._make(), self.depth, "vectorize-encode", self.outage)
        yield from self._batches

    def _make(self) -> Generator[EmbeddingBatch, None, None]:
        for n, table in enumerate(self.tables):
            self.made.append(n)
            yield EmbeddingBatch(
                collection=self.collection,
                announce=lambda _: None,
                records=table,
                stale=[],
                totals=Totals(),
                weights={},
                acknowledge=lambda n=n: self.acknowledged.append(n),  # type: ignore[misc]
                cache=lambda n=n: self.secured.append(n),  # type: ignore[misc]
            )

    def close(self) -> None:
        self.outage.close()
        if self._batches is not None:
            self._batches.close()

    def reported(self) -> None:
        """Nothing to tell."""


class Writes:
    """A store that only takes writes, and asks `fails` before each whether it is away."""

    needs_repair = False

    def __init__(self, fails: Callable[[], StoreError | None]):
        self.tables: list[pa.Table] = []
        self.calls = 0
        self._fails = fails

    def upsert(self, name: str, records: pa.Table) -> None:
        self.calls += 1
        failure = self._fails()
        if failure is not None:
            raise failure
        self.tables.append(records)

    def flush(self, names: Sequence[str]) -> None:
        """Nothing to do."""

    def maintain(self, name: str) -> None:
        """Nothing to do."""


def write(store: Writes, stream: Batches) -> None:
    with stream:
        for _ in written(DirectWriter(load_settings({}), cast("VectorStore", store)), stream):
            pass


def table(n: int, rows: int) -> pa.Table:
    return pa.table({"number": [n] * rows, "text": [f"text {n} {row} ü" for row in range(rows)]})


@given(
    sizes=st.lists(st.integers(1, 40), max_size=12),
    failures=st.lists(st.integers(0, 3), max_size=12),
    max_bytes=st.sampled_from([0, 1, 3_000, 2**20]),
    depth=st.integers(1, 3),
)
@hypothesis_settings(deadline=None, max_examples=60)
def test_order_and_content_survive_any_pattern_of_failures(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], failures: list[int], max_bytes: int, depth: int
) -> None:
    folder = tmp_path_factory.mktemp("spill")
    left = iter([away for number in failures for away in [True] * number + [False]])
    store = Writes(lambda: StoreUnavailableError("away") if next(left, False) else None)
    spill = Spill(folder, max_bytes)
    tables = [table(n, rows) for n, rows in enumerate(sizes)]
    stream = Batches(tables, SpillingRetry(60, spill, PAUSE), depth)
    write(store, stream)
    assert store.tables == tables
    assert stream.acknowledged == stream.made == list(range(len(sizes)))
    hit = {n for n, number in enumerate(failures[: len(sizes)]) if number}
    assert hit <= set(stream.secured)
    assert max(Counter(stream.secured).values(), default=1) == 1
    assert spill.bytes == 0
    assert list(folder.iterdir()) == []


def test_encoding_goes_on_while_the_store_is_away_until_the_spill_is_full(tmp_path: Path) -> None:
    size = table(0, 100).nbytes
    spill = Spill(tmp_path, 4 * size)
    stream = Batches([table(n, 100) for n in range(50)], SpillingRetry(60, spill, PAUSE))
    full: list[int] = []

    def fails() -> StoreError | None:
        if not full and spill.has_room():
            return StoreUnavailableError("away")
        full.append(len(stream.made))
        return None

    store = Writes(fails)
    write(store, stream)
    # One in the writer's hand, some on disk, one that waits for room.
    assert 1 + 2 + 1 <= full[0] <= 1 + 4 + 1
    assert len(store.tables) == 50


def test_without_room_on_disk_the_encoder_waits_and_nothing_is_lost(tmp_path: Path) -> None:
    no_folder = tmp_path / "file"
    no_folder.write_text("in the way")
    failing = iter([True] * 5)
    store = Writes(lambda: StoreUnavailableError("away") if next(failing, False) else None)
    stream = Batches([table(n, 3) for n in range(9)], SpillingRetry(60, Spill(no_folder, 2**20), PAUSE))
    write(store, stream)
    assert [each["number"][0].as_py() for each in store.tables] == list(range(9))


@pytest.mark.parametrize("failure", [StoreError("refused"), ModelMismatchError("another model")])
def test_what_is_refused_is_not_waited_for(tmp_path: Path, failure: StoreError) -> None:
    store = Writes(lambda: failure)
    stream = Batches([table(0, 1)], SpillingRetry(60, Spill(tmp_path, 2**20)))
    with pytest.raises(type(failure)):
        write(store, stream)
    assert (store.calls, stream.acknowledged, stream.secured) == (1, [], [])


def test_a_store_that_stays_away_fails_the_run_with_nothing_acknowledged_and_says_so(tmp_path: Path) -> None:
    store = Writes(lambda: StoreUnavailableError("gone in http://host"))
    stream = Batches([table(n, 1) for n in range(3)], SpillingRetry(0.05, Spill(tmp_path, 2**20), PAUSE))
    with pytest.raises(StoreUnavailableError, match=r"gone in http://host; .*store_outage_seconds is 0\.05"):
        write(store, stream)
    assert stream.acknowledged == []
    assert store.calls > 2
    assert sorted(stream.secured) == stream.made  # by the writing thread, and by the one that lays aside


# ---- a folder and its collection


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vectorize_pipelines.pipeline.outage.FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first one on, so that a run has as many as its test counts on."""
    monkeypatch.setattr("vectorize_pipelines.pipeline.encoding.FIRST_BATCH", 32)


@pytest.fixture
def cache_that_never_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cache.enabled: auto` leaves the cache alone from the first batch on."""
    monkeypatch.setattr("vectorize_pipelines.pipeline.reuse.JUDGED_AFTER_ROWS", 1)
    monkeypatch.setattr("vectorize_pipelines.pipeline.reuse.TOLERATED_SHARE", -1e9)


@pytest.mark.usefixtures("cache_that_never_pays")
def test_a_run_that_found_no_store_leaves_its_vectors_to_the_next(tmp_path: Path) -> None:
    one = installation(tmp_path, store_outage_seconds=0.2)
    fill(one.folder, 200)
    upserts = iter(range(1000))
    with pytest.raises(StoreUnavailableError):
        load(one, cast("VectorStore", Away(one.store, lambda name: name == "upsert" and next(upserts) > 0)))
    acknowledged = one.store.count(COLLECTION)
    assert 0 < acknowledged < len(one.encoder.texts)
    load(one)
    assert one.store.count(COLLECTION) == 200
    assert sorted(one.encoder.texts) == sorted(set(one.encoder.texts))
    assert len(one.encoder.texts) == 200


@pytest.mark.usefixtures("short_pauses")
def test_look_ups_of_what_the_store_has_are_waited_for_too(tmp_path: Path) -> None:
    one = installation(tmp_path)
    fill(one.folder, 3)
    load(one)
    fill(one.folder, 90, first=2)
    (one.folder / "0.txt").unlink()
    asked: Counter[str] = Counter()

    def fails(name: str) -> bool:
        asked[name] += 1
        return name in ("fetch", "count_by", "upsert", "delete", "flush", "maintain") and asked[name] <= 2

    load(one, cast("VectorStore", Away(one.store, fails)))
    assert one.store.count(COLLECTION) == 91
    assert len(one.encoder.texts) == len(set(one.encoder.texts)) == 92


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.pipeline import absent_store as tests
from vectorize_pipelines.pipeline import encoding, outage, reuse
encoding.FIRST_BATCH = 32
outage.FIRST_PAUSE_SECONDS = outage.LONGEST_PAUSE_SECONDS = 0.01
reuse.JUDGED_AFTER_ROWS, reuse.TOLERATED_SHARE = 1, -1e9
one = tests.installation(Path(sys.argv[1]))
writes = iter(range(10**9))
def fails(name):
    if name != "upsert":
        return False
    if len(one.encoder.texts) >= 250:
        print(len(one.encoder.texts), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return next(writes) > 0
tests.load(one, tests.Away(one.store, fails))
"""


def test_a_process_killed_while_it_waits_loses_and_doubles_nothing(tmp_path: Path) -> None:
    one = installation(tmp_path)
    fill(one.folder, 400)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    encoded = int(killed.stdout)
    assert list((tmp_path / "spill").iterdir()) == []
    assert one.store.count(COLLECTION) < encoded
    load(one)
    assert one.store.count(COLLECTION) == 400
    # What was in the encoder's hands when the process was killed may not have been kept.
    assert 400 - encoded <= len(one.encoder.texts) <= 400 - encoded + 32


# ---- a real server


class Eventful(CountingEncoder):
    """Does something before its n-th call."""

    def __init__(self, events: dict[int, Callable[[], None]]) -> None:
        super().__init__()
        self._events = events
        self._calls = 0

    def encode(self, items: Sequence[Any], purpose: Purpose = "document") -> Vectors:
        self._calls += 1
        self._events.get(self._calls, lambda: None)()
        return super().encode(items, purpose)


@pytest.mark.usefixtures("short_pauses")
def test_a_server_killed_and_restarted_during_a_load_has_every_row_once(
    weaviate_program: None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "server").mkdir()
    with Server(tmp_path / "server") as server:
        given: dict[str, Any] = {
            "store": {
                "kind": "weaviate",
                "url": server.url,
                "grpc_port": server.grpc_port,
                "weaviate": {"retries": 0, "query_seconds": 1, "write_seconds": 1},
            },
            "pipeline": {"batch_items": 32},
        }
        settings: Settings = load_settings({"VECTORIZE_HOME": str(tmp_path)}, **given)
        folder = tmp_path / "folder"
        folder.mkdir()
        fill(folder, 500)
        # The server comes back with the ninth batch only: encoding has gone on without it.
        encoder = Eventful({3: server.kill, 9: server.start})
        one = Installation(settings, folder, WeaviateStore(settings.store), encoder)
        stream = load(one)
        assert "the store is away" in caplog.text
        assert one.store.count(COLLECTION) == 500
        assert len(encoder.texts) == len(set(encoder.texts)) == 500
        assert stream.totals.sum().encoded == 500
        vectors = one.store.fetch(COLLECTION, _everything(), ("text", "vector"))
        stored = dict(zip(vectors["text"].to_pylist(), vectors["vector"].to_pylist(), strict=True))
        assert stored.keys() == set(encoder.texts)
        for text in encoder.texts[::50]:
            np.testing.assert_allclose(stored[text], encoder.vector(text), atol=1e-6)
        one.store.close()


def _everything() -> Any:
    from vectorize_pipelines.stores.filters.expressions import And

    return And(())
