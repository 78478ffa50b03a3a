"""Qdrant under the conformance suite, three times: in a folder, over gRPC in front of Qdrant's own engine (see
`qdrant_server`), and on a real server where VECTORIZE_TEST_QDRANT_URL names one (VECTORIZE_TEST_QDRANT_GRPC_PORT and
VECTORIZE_TEST_QDRANT_API_KEY as needed; the tests drop every collection of this project that they find there).

A Qdrant server comes as a container image and from no package registry, so where that variable is not set the third run
is left out and the summary says so: it is the one place in this project's tests where a missing server is no failure.

Then what only Qdrant promises: failures that say what to do, retries, processes that die, bulk loads, tenants.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from qdrant_client import grpc as wire

from tests.servers import qdrant as qdrant_server
from tests.stores import writers
from tests.stores.lost_locks import LockLostLater
from vectorize_pipelines.errors import SettingsError, StoreError
from vectorize_pipelines.settings import QdrantSettings, StoreSettings
from vectorize_pipelines.state import held_locks
from vectorize_pipelines.state.held_locks import LockLostError
from vectorize_pipelines.stores import conformance
from vectorize_pipelines.stores.base import VectorStore, Written
from vectorize_pipelines.stores.conformance.records import COLLECTION, many, row, spec, stored, table
from vectorize_pipelines.stores.filters.expressions import And, Equal, In, Prefix, Range
from vectorize_pipelines.stores.qdrant.collections import DEFERRED
from vectorize_pipelines.stores.qdrant.store import QdrantStore

pytestmark = pytest.mark.slow

PROCESSES = multiprocessing.get_context("spawn")
SERVER_URL = os.environ.get("VECTORIZE_TEST_QDRANT_URL")
QUICK = QdrantSettings(retries=2, retry_seconds=0.001)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[qdrant_server.Server]:
    with qdrant_server.running(tmp_path) as server:
        yield server


def _settings(server: qdrant_server.Server, qdrant: QdrantSettings = QUICK, **more: Any) -> StoreSettings:
    return StoreSettings(kind="qdrant", url=server.url, grpc_port=server.grpc_port, qdrant=qdrant, **more)


def _opened(server: qdrant_server.Server, qdrant: QdrantSettings = QUICK) -> QdrantStore:
    store = QdrantStore.open(_settings(server, qdrant), server.folder)
    store.ensure_collection(COLLECTION, spec())
    return store


def _on_a_real_server(home: Path) -> StoreSettings:
    port = os.environ.get("VECTORIZE_TEST_QDRANT_GRPC_PORT")
    key = os.environ.get("VECTORIZE_TEST_QDRANT_API_KEY")
    settings = StoreSettings.model_validate(
        {"kind": "qdrant", "url": SERVER_URL, "grpc_port": int(port) if port else None, "api_key": key}
    )
    store = QdrantStore.open(settings, home)
    for physical in {collection.physical for collection in store.collections()}:
        store.drop(physical)
    store.close()
    return settings


@pytest.mark.skipif(
    SERVER_URL is None, reason="VECTORIZE_TEST_QDRANT_URL is not set: the suite runs on no whole server"
)
def test_the_suite_runs_on_a_whole_server_too(tmp_path: Path) -> None:
    assert QdrantStore.open(_on_a_real_server(tmp_path), tmp_path).collections() == []


@pytest.fixture(params=["folder", "engine", *(["server"] if SERVER_URL else [])])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSettings:
    if request.param == "folder":
        return StoreSettings(kind="qdrant")
    if request.param == "engine":
        return _settings(request.getfixturevalue("server"))
    return _on_a_real_server(tmp_path)


class _OnQdrant:
    @pytest.fixture
    def open_again(self, place: StoreSettings, tmp_path: Path) -> Callable[[], VectorStore]:
        return lambda: QdrantStore.open(place, tmp_path)


class TestCollections(_OnQdrant, conformance.Collections):
    pass


class TestRows(_OnQdrant, conformance.Rows):
    pass


class TestSearch(_OnQdrant, conformance.Search):
    pass


class TestFilters(_OnQdrant, conformance.Filters):
    pass


class TestHistories(_OnQdrant, conformance.Histories):
    pass


# ---- what is written


def _calls(server: qdrant_server.Server, method: str) -> list[Any]:
    return [request for name, request in server.requests if name == method]


def test_vectors_cross_the_wire_as_they_are_in_requests_that_wait(server: qdrant_server.Server) -> None:
    store = _opened(server, QdrantSettings(batch_rows=4))
    records = many(10)
    assert store.upsert(COLLECTION, records) == Written(10, 0)
    requests = _calls(server, "Upsert")
    assert sorted(len(request.points) for request in requests) == [2, 4, 4]
    assert all(request.wait for request in requests)
    sent = {point.id.uuid: list(point.vectors.vector.dense.data) for request in requests for point in request.points}
    assert sent == dict(zip(records["id"].to_pylist(), records["vector"].to_pylist(), strict=True))


def test_vectors_keep_their_length(place: StoreSettings, tmp_path: Path) -> None:
    store = QdrantStore.open(place, tmp_path)
    store.ensure_collection(COLLECTION, spec())
    vectors = [[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0], [1e-20, 0.0, 0.0, 0.0]]
    store.upsert(COLLECTION, table(row(item_index=index, vector=vector) for index, vector in enumerate(vectors)))
    kept = store.fetch(COLLECTION, And(()), ["item_index", "vector"]).sort_by("item_index")["vector"].to_pylist()
    np.testing.assert_allclose(kept, np.array(vectors, np.float32), rtol=1e-6)


def test_metadata_is_an_object_for_other_programs(server: qdrant_server.Server) -> None:
    from qdrant_client import QdrantClient

    store = _opened(server)
    store.upsert(COLLECTION, table([row(metadata={"year": 2024, "tags": ["a", None], "large": 2**64})]))
    client = QdrantClient(url=server.url, grpc_port=server.grpc_port, prefer_grpc=True, check_compatibility=False)
    (point,), _ = client.scroll(COLLECTION)
    assert point.payload is not None
    assert point.payload["metadata"] == {"year": 2024, "tags": ["a", None], "large": str(2**64)}


@pytest.mark.parametrize(("distance", "score"), [("cosine", 0.6), ("dot", 3.0), ("euclid", 1 - 20 / 2)])
def test_scores_by_distance(tmp_path: Path, distance: Any, score: float) -> None:
    settings = StoreSettings(kind="qdrant", qdrant=QdrantSettings(distance=distance))
    store = QdrantStore.open(settings, tmp_path)
    store.ensure_collection(COLLECTION, spec())
    store.upsert(COLLECTION, table([row(vector=[3.0, 4.0, 0.0, 0.0])]))
    hits = store.search(COLLECTION, np.array([1, 0, 0, 0], np.float32), 1)
    assert hits["score"].to_pylist() == pytest.approx([score], abs=1e-5)


def test_a_search_whose_filter_is_not_exact_finds_what_matches(place: StoreSettings, tmp_path: Path) -> None:
    store = QdrantStore.open(place, tmp_path)
    store.ensure_collection(COLLECTION, spec())
    near = [row("near.txt", index, metadata={"date": "2023-05-01"}) for index in range(60)]
    far = [row("far.txt", index, metadata={"date": "2024-05-01"}, vector=[0.0, 1.0, 0.0, 0.0]) for index in range(5)]
    store.upsert(COLLECTION, table(near + far))
    where = Range("metadata.date", at_least="2024-01-01", below="2025-01-01")
    query = np.array([1, 0, 0, 0], np.float32)
    assert store.search(COLLECTION, query, 3, where)["source_id"].to_pylist() == ["far.txt"] * 3
    assert store.search(COLLECTION, query, 99, where).num_rows == 5
    assert store.count_by(COLLECTION, "source_id", where) == {"far.txt": 5}
    assert store.delete(COLLECTION, where) == 5
    assert store.count(COLLECTION) == 60


def test_half_characters_are_kept_in_metadata_and_found(place: StoreSettings, tmp_path: Path) -> None:
    store = QdrantStore.open(place, tmp_path)
    store.ensure_collection(COLLECTION, spec())
    store.upsert(COLLECTION, table([row(metadata={"name\ud800": "\udfff value"}), row("other.txt")]))
    assert store.count(COLLECTION, Equal("metadata.name\ud800", "\udfff value")) == 1
    assert store.count(COLLECTION, Prefix("metadata.name\ud800", "\udfff")) == 1
    assert store.count(COLLECTION, Equal("source_id", "\ud800")) == 0
    assert store.count_by(COLLECTION, "metadata.name\ud800") == {"\udfff value": 1}


def test_threads_that_write_the_same_ids_store_and_count_each_once(place: StoreSettings, tmp_path: Path) -> None:
    store = QdrantStore.open(place, tmp_path)
    store.ensure_collection(COLLECTION, spec())
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda number: store.upsert(COLLECTION, many(30, first=10 * (number % 4))), range(16)))
    assert sum(one.inserted for one in written) == len(stored(store)) == 60


def test_the_partitions_of_a_window_are_found_by_conditions_alone(server: qdrant_server.Server) -> None:
    store = _opened(server)
    days = ["2023-12-31", "2024-01-01", "2024-01-31", "2024-02-01", "2024-1", "no day"]
    store.upsert(COLLECTION, table(row(f"{day}.txt", partition=day) for day in days))
    january = Range("partition", at_least="2024-01-01", below="2024-02-01")
    assert store.count(COLLECTION, january) == 2
    assert store.count_by(COLLECTION, "partition", january) == {"2024-01-01": 1, "2024-01-31": 1}
    assert store.count(COLLECTION, Prefix("partition", "2024-")) == 4
    assert not _calls(server, "Scroll")


# ---- collections


def test_an_alias_is_switched_in_one_request(server: qdrant_server.Server) -> None:
    store = _opened(server)
    other = store.ensure_collection(COLLECTION, spec("models/other"), aliased=False)
    store.set_alias(COLLECTION, other.physical)
    actions = _calls(server, "UpdateAliases")[-1].actions
    assert [action.WhichOneof("action") for action in actions] == ["delete_alias", "create_alias"]


def test_settings_reach_the_collection(server: qdrant_server.Server) -> None:
    wanted = QdrantSettings(
        hnsw_m=0,
        hnsw_payload_m=24,
        hnsw_ef_construct=200,
        search_ef=64,
        exact=True,
        quantization="scalar",
        oversampling=2.0,
        vectors_on_disk=True,
        shards=3,
        replicas=2,
        write_consistency_factor=2,
        tenant_field="metadata.tenant",
    )
    store = _opened(server, wanted)
    (created,) = _calls(server, "Create")
    assert (created.hnsw_config.m, created.hnsw_config.payload_m, created.hnsw_config.ef_construct) == (0, 24, 200)
    assert created.quantization_config.WhichOneof("quantization") == "scalar"
    assert created.vectors_config.params.on_disk
    assert (created.shard_number, created.replication_factor, created.write_consistency_factor) == (3, 2, 2)
    tenants = {
        request.field_name: request.field_index_params.keyword_index_params.is_tenant
        for request in _calls(server, "CreateFieldIndex")
    }
    assert [field for field, is_tenant in tenants.items() if is_tenant] == ["metadata.tenant"]
    store.search(COLLECTION, np.ones(4, np.float32), 1)
    parameters = _calls(server, "Query")[-1].params
    assert (parameters.hnsw_ef, parameters.exact, parameters.quantization.oversampling) == (64, True, 2.0)


def test_a_tenant_is_asked_for_by_its_own_index_too(server: qdrant_server.Server) -> None:
    store = _opened(server, QdrantSettings(tenant_field="metadata.tenant"))
    store.upsert(COLLECTION, table(row(item_index=index, metadata={"tenant": "ab"[index % 2]}) for index in range(6)))
    assert store.count(COLLECTION, Equal("metadata.tenant", "a")) == 3
    assert "metadata.tenant" in str(_calls(server, "Count")[-1].filter)


def test_indexes_that_a_process_left_out_are_made_by_the_next(server: qdrant_server.Server) -> None:
    store = _opened(server)
    made = len(_calls(server, "CreateFieldIndex"))
    server.named(COLLECTION).indexes.pop("source_id")
    store.ensure_collection(COLLECTION, spec())
    assert [request.field_name for request in _calls(server, "CreateFieldIndex")[made:]] == ["source_id"]


def test_collections_of_others_are_left_alone(tmp_path: Path) -> None:
    from qdrant_client import QdrantClient, models

    foreign = QdrantClient(path=str(tmp_path / "qdrant"))
    foreign.create_collection("foreign", vectors_config=models.VectorParams(size=4, distance=models.Distance.DOT))
    foreign.close()
    store = QdrantStore.open(StoreSettings(kind="qdrant"), tmp_path)
    assert store.collections() == []
    for call in (store.collection, store.count, store.maintain):
        with pytest.raises(StoreError, match="not a collection of this project"):
            call("foreign")


# ---- bulk loads


def test_a_bulk_load_is_indexed_when_it_ends(server: qdrant_server.Server) -> None:
    store = _opened(server, QdrantSettings(bulk_rows=15, indexing_threshold=7_000))
    collection = server.named(COLLECTION)
    store.upsert(COLLECTION, many(10))
    assert collection.indexing_threshold == 7_000
    store.upsert(COLLECTION, many(10, first=10))
    assert (collection.indexing_threshold, collection.metadata[DEFERRED]) == (0, 7_000)
    assert store.maintain(COLLECTION)["restored"] == 1
    assert collection.indexing_threshold == 7_000
    assert DEFERRED not in collection.metadata
    assert store.maintain(COLLECTION)["restored"] == 0


def test_whoever_maintains_next_ends_the_bulk_load_of_a_process_that_died(server: qdrant_server.Server) -> None:
    _opened(server, QdrantSettings(bulk_rows=1, indexing_threshold=7_000)).upsert(COLLECTION, many(10))
    assert server.named(COLLECTION).indexing_threshold == 0
    assert _opened(server).maintain(COLLECTION)["restored"] == 1
    assert server.named(COLLECTION).indexing_threshold == 7_000


# ---- failures


def test_a_server_that_is_away_for_a_moment_is_asked_again(server: qdrant_server.Server) -> None:
    store = _opened(server)
    server.failing = lambda method, call: (
        grpc.StatusCode.UNAVAILABLE if (method, call) in {("Upsert", 1), ("Upsert", 2), ("Count", 1)} else None
    )
    assert store.upsert(COLLECTION, many(3)) == Written(3, 0)
    assert store.count(COLLECTION) == 3
    assert len(_calls(server, "Upsert")) == 3


def test_of_a_run_that_was_taken_over_no_request_is_sent_again(
    server: qdrant_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _opened(server)
    store.upsert(COLLECTION, many(3))
    server.requests.clear()
    server.failing = lambda method, _: grpc.StatusCode.UNAVAILABLE if method in ("Upsert", "Delete") else None
    changes: dict[str, Callable[[], object]] = {
        "Upsert": lambda: store.upsert(COLLECTION, many(3)),
        "Delete": lambda: store.delete(COLLECTION, And(())),
    }
    for method, change in changes.items():
        monkeypatch.setattr(held_locks, "needed_by_process", [LockLostLater(1)])
        with pytest.raises(LockLostError, match="taken over"):
            change()
        assert len(_calls(server, method)) == 1


def test_a_failed_upsert_says_what_was_written_and_can_be_repeated(server: qdrant_server.Server) -> None:
    store = _opened(server, QdrantSettings(batch_rows=4, concurrency=1, retries=1, retry_seconds=0.001))
    server.failing = lambda method, call: grpc.StatusCode.UNAVAILABLE if method == "Upsert" and call > 1 else None
    with pytest.raises(StoreError, match=r"4 of 10 records were written") as failure:
        store.upsert(COLLECTION, many(10))
    assert f"{server.url} (gRPC port {server.grpc_port})" in str(failure.value)
    server.failing = lambda method, call: None
    assert store.upsert(COLLECTION, many(10)) == Written(inserted=6, updated=4)
    assert len(stored(store)) == 10


def test_points_that_are_taken_but_not_applied_are_a_failure(
    server: qdrant_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _opened(server)
    monkeypatch.setattr(qdrant_server, "STATUS", wire.UpdateStatus.WaitTimeout)
    with pytest.raises(StoreError, match=r"not applied them \(waittimeout\)"):
        store.upsert(COLLECTION, many(3))


def test_what_cannot_pass_is_not_repeated(server: qdrant_server.Server) -> None:
    store = _opened(server)
    server.failing = lambda method, _: grpc.StatusCode.INVALID_ARGUMENT if method == "Count" else None
    with pytest.raises(StoreError, match="wants it to"):
        store.count(COLLECTION)
    assert len(_calls(server, "Count")) == 1


def test_a_wrong_key_is_refused_without_being_shown(tmp_path: Path) -> None:
    with qdrant_server.running(tmp_path, api_key="the right key") as server:
        with pytest.raises(StoreError) as failure:
            QdrantStore.open(_settings(server, api_key="a wrong secret"), tmp_path)
        assert "VECTORIZE_STORE__API_KEY" in str(failure.value)
        assert "wrong secret" not in str(failure.value)
        assert failure.value.__cause__ is None
        QdrantStore.open(_settings(server, api_key="the right key"), tmp_path).ensure_collection(COLLECTION, spec())


def test_a_server_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    settings = StoreSettings(kind="qdrant", url="http://127.0.0.1:6333", grpc_port=port, qdrant=QUICK)
    with pytest.raises(StoreError, match=rf"http://127\.0\.0\.1:6333 \(gRPC port {port}\).*store\.url"):
        QdrantStore.open(settings, tmp_path)


def test_a_server_that_is_too_old_is_refused(server: qdrant_server.Server, tmp_path: Path) -> None:
    server.version = "1.18.2"
    with pytest.raises(StoreError, match=r"1\.18\.2; 1\.19 or later"):
        QdrantStore.open(_settings(server), tmp_path)


@pytest.mark.parametrize(
    "url", ["ftp://host/path", "s3://bucket/qdrant", "http://", "http://host/path", "http://someone:secret@host"]
)
def test_a_url_that_is_not_for_qdrant_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match=r"store\.url") as refused:
        QdrantStore.open(StoreSettings(kind="qdrant", url=url), tmp_path)
    assert "secret" not in str(refused.value)


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = StoreSettings(
        kind="qdrant", url="https://localhost", qdrant=QdrantSettings(ca_certificate=tmp_path / "ca.pem")
    )
    with pytest.raises(SettingsError, match=r"ca_certificate.*ca\.pem"):
        QdrantStore.open(settings, tmp_path)


# ---- processes


def _started(function: Callable[..., None], *arguments: Any) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    answers, to_us = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=function, args=(*arguments, to_us), daemon=True)
    process.start()
    to_us.close()
    return process, answers


def test_a_second_process_on_a_folder_is_refused_and_a_killed_one_leaves_it_usable(tmp_path: Path) -> None:
    process, answers = _started(writers.upsert_to_qdrant_until_killed, tmp_path)
    confirmed = [answers.recv() for _ in range(3)][-1]
    with pytest.raises(StoreError, match=rf"another process has {tmp_path / 'qdrant'} open.*server"):
        QdrantStore.open(StoreSettings(kind="qdrant"), tmp_path)
    process.kill()
    process.join()
    store = QdrantStore.open(StoreSettings(kind="qdrant"), tmp_path)
    rows = store.count(COLLECTION)
    assert rows == len(stored(store)) >= (confirmed + 1) * writers.BATCH_ROWS
    again = many(writers.BATCH_ROWS * (confirmed + 9))
    written = store.upsert(COLLECTION, again)
    assert (written.updated, written.inserted) == (rows, again.num_rows - rows)
    assert (
        store.count(COLLECTION, In("id", tuple(again["id"].to_pylist()))) == store.count(COLLECTION) == again.num_rows
    )


def test_the_stores_of_a_process_share_a_folder_until_the_last_is_closed(tmp_path: Path) -> None:
    first, second = (QdrantStore.open(StoreSettings(kind="qdrant"), tmp_path) for _ in range(2))
    first.ensure_collection(COLLECTION, spec())
    first.close()
    assert second.upsert(COLLECTION, many(3)) == Written(3, 0)
    second.close()
    assert QdrantStore.open(StoreSettings(kind="qdrant"), tmp_path).count(COLLECTION) == 3
