"""Weaviate under the conformance suite, and what only it promises: a server that is killed, tenants, texts that its
index would change, results larger than it gives at once, and failures that say what to do."""

import json
import os
import queue
import re
import socket
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.components import missing
from tests.servers.weaviate import Server
from tests.stores.lost_locks import LockLostLater
from tests.stores.weaviate_clients import client_of, emptied
from vectorize_pipelines.errors import CollectionNotFoundError, ModelMismatchError, SettingsError, StoreError
from vectorize_pipelines.settings import PROJECT_ROOT, StoreSettings, WeaviateSettings
from vectorize_pipelines.state import held_locks
from vectorize_pipelines.state.held_locks import LockLostError
from vectorize_pipelines.state.leases import LEASE_SECONDS, RENEWALS
from vectorize_pipelines.stores import ENTRY_POINTS, conformance
from vectorize_pipelines.stores.base import VectorStore, Written
from vectorize_pipelines.stores.conformance.records import COLLECTION, many, row, spec, stored, table
from vectorize_pipelines.stores.filters.expressions import And, Equal, Filter, Not
from vectorize_pipelines.stores.weaviate import reading
from vectorize_pipelines.stores.weaviate import store as weaviate_store
from vectorize_pipelines.stores.weaviate.reading import MOST_ROWS
from vectorize_pipelines.stores.weaviate.store import WeaviateStore
from vectorize_pipelines.stores.weaviate.texts import (
    after_prefix,
    collection_name,
    own_name,
    property_name,
    read,
    written,
    written_column,
)

#: What the server of the tests on large results gives at once.
FEW_ROWS = 1_000


class _OnWeaviate:
    @pytest.fixture
    def open_again(self, weaviate: StoreSettings, request: pytest.FixtureRequest) -> Callable[[], VectorStore]:
        emptied(weaviate)

        def opened() -> VectorStore:
            store = WeaviateStore(weaviate)
            request.addfinalizer(store.close)
            return store

        return opened


class TestCollections(_OnWeaviate, conformance.Collections):
    pass


class TestRows(_OnWeaviate, conformance.Rows):
    pass


class TestSearch(_OnWeaviate, conformance.Search):
    pass


class TestFilters(_OnWeaviate, conformance.Filters):
    LARGEST_OFFSET: ClassVar[int] = 2**53


class TestHistories(_OnWeaviate, conformance.Histories):
    pass


@pytest.fixture
def store(weaviate: StoreSettings) -> Iterator[WeaviateStore]:
    """A store with an empty collection named `articles`, on the shared server."""
    store = WeaviateStore(emptied(weaviate))
    store.ensure_collection(COLLECTION, spec())
    yield store
    store.close()


def with_own(settings: StoreSettings, **own: Any) -> StoreSettings:
    """The settings with others of Weaviate's own."""
    return settings.model_copy(update={"weaviate": WeaviateSettings(**own)})


# ---- texts and names


#: What Go's unicode.IsSpace says, and so what the server trims.
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
texts = st.text() | st.text(alphabet="\x00\x08\t\n\x1f !\x84\x85\u1fff\u2000\u200a\u3000a01", max_size=5)


@given(texts, texts)
def test_texts_are_written_so_that_they_come_back_and_sort_as_they_do(first: str, second: str) -> None:
    assert read(written(first)) == first
    assert written(first) == written(first).strip(SPACES) != ""
    assert (written(first) < written(second)) == (first < second)


@given(st.lists(texts, min_size=1).map(pa.array))
def test_columns_of_texts_are_written_as_each_text_is(column: pa.Array) -> None:
    chunked = pa.chunked_array([column], pa.string())
    forms = written_column(chunked)
    assert forms.to_pylist() == [written(text) for text in column.to_pylist()]


@given(st.text(max_size=3), st.text(max_size=4))
def test_what_starts_with_a_prefix_lies_before_what_comes_after_it(prefix: str, rest: str) -> None:
    after = after_prefix(prefix)
    assert after is None or prefix + rest < after
    assert after is None or not after.startswith(prefix)


@given(st.from_regex(r"\A[a-z][a-z0-9_-]{0,30}\Z"), st.from_regex(r"\A[a-z][a-z0-9_-]{0,30}\Z"))
def test_names_of_collections_come_back_and_stay_apart_whatever_their_case(first: str, second: str) -> None:
    native = collection_name(first) or ""
    assert re.fullmatch("[A-Z][_0-9A-Za-z]*", native)
    assert own_name(native) == first
    assert (native.lower() == (collection_name(second) or "").lower()) == (first == second)


@given(st.lists(st.text(max_size=80), unique=True))
def test_names_of_metadata_have_properties_of_their_own_whatever_their_case(names: list[str]) -> None:
    properties = {property_name(name) for name in names}
    assert len({one.lower() for one in properties}) == len(names)
    assert all(re.fullmatch("[a-z][_0-9a-z]{0,200}", one) for one in properties)


def test_collections_whose_names_differ_by_a_sign_stand_side_by_side(store: WeaviateStore) -> None:
    names = ["a-b", "a_b", "a--b", "a__b", "adb"]
    for name in names:
        store.ensure_collection(name, spec())
        store.upsert(name, many(names.index(name) + 1))
    assert [store.count(name) for name in names] == [1, 2, 3, 4, 5]
    assert {one.name for one in store.collections()} == {*names, COLLECTION}


def test_a_name_that_weaviate_cannot_have_is_refused(store: WeaviateStore) -> None:
    with pytest.raises(StoreError, match="Übersicht"):
        store.ensure_collection("Übersicht", spec())
    with pytest.raises(CollectionNotFoundError, match="Übersicht"):
        store.count("Übersicht")


def test_collections_of_others_are_left_alone(store: WeaviateStore, weaviate: StoreSettings) -> None:
    with client_of(weaviate) as client:
        client.collections.delete("Foreign")
        client.collections.create("Foreign", description="mine")
        try:
            assert [one.name for one in store.collections()] == [COLLECTION]
            for call in (store.collection, store.count, store.maintain, store.drop):
                with pytest.raises(StoreError, match="not a collection of this project"):
                    call("foreign")
        finally:
            client.collections.delete("Foreign")


def test_of_two_models_for_one_new_name_the_second_is_refused(weaviate: StoreSettings) -> None:
    emptied(weaviate)
    stores = [WeaviateStore(weaviate) for _ in range(2)]
    specs = [spec(), spec("models/other", 8, "ffffffffffff")]

    def ensured(number: int) -> str:
        try:
            return stores[number].ensure_collection(COLLECTION, specs[number]).physical
        except ModelMismatchError:
            return "refused"

    with ThreadPoolExecutor(2) as pool:
        results = sorted(pool.map(ensured, range(2)))
    assert results == [stores[0].collection(COLLECTION).physical, "refused"]
    assert len(stores[0].collections()) == 1, "the collection of the second one is gone again"
    for one in stores:
        one.close()


def test_an_alias_whose_collection_was_deleted_is_taken_up_again(store: WeaviateStore, weaviate: StoreSettings) -> None:
    with client_of(weaviate) as client:
        client.collections.delete("Articles____tiny_dmodel_d4")
    assert store.collections() == []
    store.ensure_collection(COLLECTION, spec())
    assert store.count(COLLECTION) == 0


# ---- results larger than the server gives at once


def test_more_rows_than_the_server_gives_at_once_are_read_counted_and_deleted(
    server: Server,
) -> None:
    store = WeaviateStore(StoreSettings(kind="weaviate", url=server.url, grpc_port=server.grpc_port))
    store.ensure_collection(COLLECTION, spec())
    rows = FEW_ROWS + 250
    store.upsert(COLLECTION, many(rows, per_source=2))
    where = Not(Equal("source_id", "folder/0.txt"))
    assert store.fetch(COLLECTION, where, ["id"]).num_rows == rows - 2
    batches = list(store.scan(COLLECTION, ["id", "vector"], where, batch_rows=70))
    assert max(batch.num_rows for batch in batches) <= 70
    assert len({one for batch in batches for one in batch["id"].to_pylist()}) == rows - 2
    by_source = store.count_by(COLLECTION, "source_id")
    assert len(by_source) == rows // 2
    assert set(by_source.values()) == {2}
    assert store.delete(COLLECTION, where) == rows - 2
    assert store.count(COLLECTION) == 2
    store.close()


def test_a_search_gives_as_many_rows_as_there_are(weaviate: StoreSettings) -> None:
    """Equal vectors leave parts of an HNSW graph out of reach of each other."""
    store = WeaviateStore(with_own(emptied(weaviate), flat_search_cutoff=1_000, max_connections=4, ef_construction=4))
    store.ensure_collection(COLLECTION, spec())
    store.upsert(COLLECTION, table(row(f"{number}.txt", metadata={"odd": number % 2 == 1}) for number in range(2_400)))
    query = np.array([1, 0, 0, 0], np.float32)
    assert store.search(COLLECTION, query, 2_000).num_rows == 2_000
    assert store.search(COLLECTION, query, 1_200, Equal("metadata.odd", True)).num_rows == 1_200
    store.close()


def test_a_search_for_more_than_the_server_gives_says_what_to_do(store: WeaviateStore) -> None:
    store.upsert(COLLECTION, many(3))
    assert store.search(COLLECTION, np.ones(4, np.float32), MOST_ROWS).num_rows == 3
    with pytest.raises(StoreError, match="raise its QUERY_MAXIMUM_RESULTS"):
        store.search(COLLECTION, np.ones(4, np.float32), MOST_ROWS + 1)


# ---- metadata


def test_names_of_metadata_beyond_the_limit_are_kept_and_filters_on_them_refused(weaviate: StoreSettings) -> None:
    store = WeaviateStore(with_own(emptied(weaviate), metadata_names=2))
    store.ensure_collection(COLLECTION, spec())
    store.upsert(COLLECTION, table([row(metadata={"a": 1, "b": 2, "c": 3}), row("other.txt", metadata={"a": 2})]))
    assert json.loads(stored(store)[row()["id"]]["metadata"]) == {"a": 1, "b": 2, "c": 3}
    assert store.count(COLLECTION, Equal("metadata.b", 2)) == 1
    assert store.count(COLLECTION, Equal("metadata.never seen", 2)) == 0
    calls: list[Callable[[Filter], object]] = [
        lambda where: store.count(COLLECTION, where),
        lambda where: store.delete(COLLECTION, where),
        lambda where: store.fetch(COLLECTION, where, ["id"]),
        lambda where: store.search(COLLECTION, np.ones(4, np.float32), 1, where),
        lambda where: store.count_by(COLLECTION, "metadata.c", where),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="METADATA_NAMES"):
            call(Not(Equal("metadata.c", 3)))
    more = WeaviateStore(with_own(weaviate, metadata_names=3))
    with pytest.raises(StoreError, match="METADATA_NAMES"):
        more.count(COLLECTION, Equal("metadata.c", 3))
    more.upsert(COLLECTION, table([row(metadata={"a": 1, "b": 2, "c": 3})]))
    assert more.count(COLLECTION, Equal("metadata.c", 3)) == store.count(COLLECTION, Equal("metadata.c", 3)) == 1
    for one in (store, more):
        one.close()


# ---- aliases, tenants and what the index is made of


def test_a_search_sees_at_once_that_its_alias_was_turned(store: WeaviateStore, weaviate: StoreSettings) -> None:
    other = store.ensure_collection(COLLECTION, spec("models/other", 8), aliased=False)
    store.upsert(COLLECTION, table([row("old.txt")]))
    store.upsert(other.physical, table([row("new.txt", vector=[1.0] + [0.0] * 7)], 8))
    query = np.eye(8, dtype=np.float32)[0]
    assert store.search(COLLECTION, query[:4], 1)["source_id"].to_pylist() == ["old.txt"]
    turning = WeaviateStore(weaviate)
    turning.set_alias(COLLECTION, other.physical)
    assert store.search(COLLECTION, query, 1)["source_id"].to_pylist() == ["new.txt"]
    with pytest.raises(StoreError, match="query vector"):
        store.search(COLLECTION, query[:4], 1)
    turning.close()


def test_tenants_share_a_collection_and_see_nothing_of_each_other(weaviate: StoreSettings) -> None:
    emptied(weaviate)
    first, second = (WeaviateStore(with_own(weaviate, tenant=name)) for name in ("first", "second"))
    for number, one in enumerate((first, second), 1):
        one.ensure_collection(COLLECTION, spec())
        assert one.upsert(COLLECTION, many(number * 3)) == Written(inserted=number * 3, updated=0)
    assert (first.count(COLLECTION), second.count(COLLECTION)) == (3, 6)
    assert first.delete(COLLECTION, And(())) == 3
    assert second.search(COLLECTION, np.ones(4, np.float32), 99).num_rows == 6
    assert second.maintain(COLLECTION)["rows"] == len(stored(second)) == 6
    stranger = WeaviateStore(with_own(weaviate, tenant="stranger"))
    assert stranger.collections() == []
    without = WeaviateStore(weaviate)
    assert without.collections() == []
    with pytest.raises(StoreError, match="VECTORIZE_STORE__WEAVIATE__TENANT"):
        without.count(COLLECTION)
    for one in (first, second, stranger, without):
        one.close()


@pytest.mark.parametrize(
    "own",
    [{"distance": "dot", "quantization": "rq"}, {"distance": "l2-squared", "quantization": "sq"}, {"index": "flat"},
     {"index": "flat", "quantization": "bq"}, {"quantization": "pq"}, {"quantization": "bq", "shards": 3}],
    ids=str,
)  # fmt: skip
def test_scores_are_cosines_whatever_the_index(weaviate: StoreSettings, own: dict[str, Any]) -> None:
    store = WeaviateStore(with_own(emptied(weaviate), **own))
    store.ensure_collection(COLLECTION, spec(dimension=32))
    records = many(300, dimension=32)
    store.upsert(COLLECTION, records)
    vectors = np.stack(records["vector"].to_numpy())
    hits = store.search(COLLECTION, vectors[7], 5)
    assert hits["id"].to_pylist()[0] == records["id"].to_pylist()[7]
    place = {one: number for number, one in enumerate(records["id"].to_pylist())}
    cosines = [float(vectors[place[one]] @ vectors[7]) for one in hits["id"].to_pylist()]
    np.testing.assert_allclose(hits["score"].to_numpy(), cosines, atol=1e-4)
    assert len(stored(store)) == 300
    store.close()


def test_settings_reach_the_server(weaviate: StoreSettings) -> None:
    own = {"ef": 77, "ef_construction": 99, "max_connections": 21, "flat_search_cutoff": 1234, "shards": 2}
    store = WeaviateStore(with_own(emptied(weaviate), quantization="sq", rescore_limit=33, **own))
    store.ensure_collection(COLLECTION, spec())
    assert store.maintain(COLLECTION)["shards"] == 2
    with client_of(weaviate) as client:
        config = client.collections.use("Articles").config.get()
    index: Any = (config.vector_config or {})["default"].vector_index_config
    assert (index.ef, index.ef_construction, index.max_connections, index.flat_search_cutoff) == (77, 99, 21, 1234)
    assert index.quantizer.rescore_limit == 33
    store.close()


# ---- faults


@pytest.fixture(scope="module")
def own_server(weaviate_program: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    few = {"QUERY_MAXIMUM_RESULTS": str(FEW_ROWS)}
    with Server(tmp_path_factory.mktemp("own-weaviate"), few) as server:
        yield server


@pytest.fixture
def server(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """An empty server that gives `FEW_ROWS` at once and that the test may kill.

    The next one starts it again: tests that end it come last.
    """
    for module in (reading, weaviate_store):
        monkeypatch.setattr(module, "MOST_ROWS", FEW_ROWS)
    own_server.start()
    emptied(StoreSettings(kind="weaviate", url=own_server.url, grpc_port=own_server.grpc_port))
    return own_server


def test_a_load_outlives_a_server_that_is_killed(server: Server) -> None:
    settings = StoreSettings(kind="weaviate", url=server.url, grpc_port=server.grpc_port)
    store = WeaviateStore(with_own(settings, batch_rows=50, retries=8, retry_seconds=0.25))
    store.ensure_collection(COLLECTION, spec())
    killed = threading.Event()

    def load() -> None:
        """Batch after batch until some time after the crash, each one called again where it failed."""
        for number in range(400):
            batch = many(50, first=50 * number, seed=number)
            try:
                store.upsert(COLLECTION, batch)
            except StoreError:
                assert killed.is_set()
                store.upsert(COLLECTION, batch)
            written.put(number)
            if killed.is_set() and number >= last[0]:
                return

    written: queue.Queue[int] = queue.Queue()
    last = [0]
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        for _ in range(10):
            done = written.get(timeout=60)
        last[0] = done + 20
        killed.set()
        server.kill()
        server.start()
        loading.result(timeout=120)
    batches = _last(written, done) + 1
    rows = stored(store)
    assert len(rows) == store.count(COLLECTION) == 50 * batches
    assert store.upsert(COLLECTION, many(50, first=0, seed=0)) == Written(inserted=0, updated=50)
    query = np.array(rows[many(50, first=0, seed=0)["id"][7].as_py()]["vector"], np.float32)
    assert store.search(COLLECTION, query, 1)["score"].to_pylist() == pytest.approx([1.0], abs=1e-5)
    store.close()


def _last(numbers: "queue.Queue[int]", known: int) -> int:
    while not numbers.empty():
        known = numbers.get()
    return known


def test_of_a_run_that_was_taken_over_no_further_request_is_sent(
    weaviate: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied(weaviate)
    own = WeaviateSettings(batch_rows=10, concurrency=1)
    with closing(WeaviateStore(weaviate.model_copy(update={"weaviate": own}))) as store:
        store.ensure_collection(COLLECTION, spec())
        monkeypatch.setattr(held_locks, "needed_by_process", [LockLostLater(2)])
        with pytest.raises(LockLostError, match="taken over"):
            store.upsert(COLLECTION, many(40))
        assert store.count(COLLECTION) == 20
        with pytest.raises(LockLostError, match="taken over"):
            store.delete(COLLECTION, Equal("item_index", 0))
        assert store.count(COLLECTION) == 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the option")
def test_what_the_server_does_not_confirm_is_dropped_before_a_lease_lapses(weaviate: StoreSettings) -> None:
    with closing(WeaviateStore(weaviate)) as store:
        store.collections()
        store.ensure_collection(COLLECTION, spec())
        store.upsert(COLLECTION, many(1))
        ours = [each for each in psutil.Process().net_connections("tcp") if each.raddr]
        found = {_user_timeout(each.fd) for each in ours if each.raddr.port == weaviate.grpc_port}
    assert found
    assert all(0 < timeout < 1000 * LEASE_SECONDS * (1 - 1 / RENEWALS) for timeout in found), found


def _user_timeout(descriptor: int) -> int:
    """Return after how many milliseconds the system gives up a connection whose other end is silent; 0: after long."""
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


def test_a_server_that_stays_down_fails_a_call_with_its_address_and_the_remedy(server: Server) -> None:
    settings = StoreSettings(kind="weaviate", url=server.url, grpc_port=server.grpc_port)
    store = WeaviateStore(with_own(settings, retries=1, retry_seconds=0.1, query_seconds=1, write_seconds=1))
    store.ensure_collection(COLLECTION, spec())
    store.upsert(COLLECTION, many(3))
    server.kill()
    calls: list[Callable[[], object]] = [
        lambda: store.upsert(COLLECTION, many(3)),
        lambda: store.count(COLLECTION),
        lambda: store.search(COLLECTION, np.ones(4, np.float32), 1),
        lambda: store.collections(),
    ]
    for call in calls:
        with pytest.raises(StoreError, match=rf"{server.url}.*start it, or correct VECTORIZE_STORE__URL"):
            call()
    store.close()


def test_no_server_at_all_is_said_at_once(tmp_path: Path) -> None:
    settings = StoreSettings(kind="weaviate", url=Server(tmp_path).url, api_key=SecretStr("very secret"))
    with pytest.raises(StoreError, match=r"opening failed in http://127\.0\.0\.1:\d+; the server cannot be reached"):
        WeaviateStore(settings)


def test_a_wrong_key_is_said_without_showing_it(
    weaviate: StoreSettings, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    if weaviate.api_key is None:
        missing("the server that VECTORIZE_TEST_WEAVIATE_URL names asks for no key")
    for key in (None, SecretStr("wrong-key")):
        with pytest.raises(StoreError, match=rf"{weaviate.url}.*VECTORIZE_STORE__API_KEY") as refused:
            WeaviateStore(weaviate.model_copy(update={"api_key": key}))
        assert "wrong-key" not in str(refused.value)
        assert refused.value.__cause__ is None
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_refused_objects_are_named_by_their_ids(
    store: WeaviateStore, weaviate: StoreSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody has written another vector behind the store's back: the index then refuses those of our length."""
    eager = WeaviateStore(with_own(weaviate, retries=1, retry_seconds=0.01))
    with client_of(weaviate) as client:
        client.collections.use("Articles").data.insert({}, vector=[1.0, 0.0])
    with pytest.raises(StoreError, match=rf"refused 1 of 1 records, by id: {row()['id']}: .*length"):
        eager.upsert(COLLECTION, table([row()]))
    assert caplog.text == ""
    eager.close()


def test_offsets_that_weaviate_would_round_are_refused(store: WeaviateStore) -> None:
    with pytest.raises(StoreError, match="'end'"):
        store.upsert(COLLECTION, table([row(end=2**53 + 1)]))
    assert store.count(COLLECTION) == 0


@pytest.mark.parametrize(
    "url", ["localhost:8080", "ftp://host", "http://host/path", "http://user:pass@host", "http://"]
)
def test_a_url_that_is_not_weaviates_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"store\.url") as refused:
        WeaviateStore(StoreSettings(kind="weaviate", url=url))
    assert "pass" not in str(refused.value)


def test_the_kind_is_registered() -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
    value = project["entry-points"][ENTRY_POINTS]["weaviate"]
    assert EntryPoint("weaviate", value, ENTRY_POINTS).load() is WeaviateStore
