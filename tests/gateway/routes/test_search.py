"""Collections, search and single rows over HTTP, against a real server, a real store and real models."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.commands import Vectorize
from tests.gateway.encoding.held_encoder import DIMENSION, HeldEncoder, Models, vector_of
from tests.gateway.searching import (
    CHUNKER,
    DOCUMENTS,
    FINGERPRINT,
    PICTURES,
    SECONDS,
    TEXTS,
    data_uri,
    served,
    store_pictures,
    store_texts,
)
from tests.servers.dev import until
from tests.servers.ports import free_ports
from vectorize_pipelines.core.records import RECORD_FIELDS, record_id
from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.encoders.configured import lease_configured
from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.gateway import services
from vectorize_pipelines.gateway.door.auth import Caller
from vectorize_pipelines.gateway.encoding.batching import EncodingQueue
from vectorize_pipelines.gateway.stored.opened_store import CALLS, OpenedStore
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, Settings, load_settings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.conformance.records import row, spec, table

pytestmark = pytest.mark.slow

SEARCH = f"/collections/{TEXTS}/search"
QUESTION = "who feeds the hens"
PHYSICAL = "articles__all-minilm-l6-v2-384"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, exported_models: Path) -> Iterator[httpx2.Client]:
    """A client of a server whose store has `DOCUMENTS`; one server for all tests of this module."""
    home = tmp_path_factory.mktemp("home")
    (home / "encoders").symlink_to(exported_models)
    settings = load_settings({"VECTORIZE_HOME": str(home)})
    store_texts(settings)
    with served(settings) as client:
        yield client


@pytest.fixture
def pictures(settings: Settings, tmp_path: Path) -> list[Path]:
    """The files of the collection `PICTURES`."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    return store_pictures(settings, folder)


def sources(answer: httpx2.Response) -> list[str]:
    assert answer.status_code == HTTPStatus.OK, answer.text
    return [hit["source_id"] for hit in answer.json()["hits"]]


def problem(answer: httpx2.Response, status: HTTPStatus) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    return found


def fields(answer: httpx2.Response) -> list[str]:
    return [each["field"] for each in problem(answer, HTTPStatus.UNPROCESSABLE_ENTITY)["errors"]]


def same_hits(hits: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    """Return whether they are the same; the last digits of a score follow from what was encoded beside it."""
    ours, theirs = ([hit["score"] for hit in each] for each in (hits, wanted))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    return [{**hit, "score": 0} for hit in hits] == [{**hit, "score": 0} for hit in wanted]


# ---- collections


def test_collections_are_listed_and_described(settings: Settings, pictures: list[Path]) -> None:
    store_texts(settings)
    with served(settings) as client:
        listed = client.get("/collections").json()["collections"]
        expected = {
            "name": TEXTS, "physical": PHYSICAL, "store": "lancedb", "model": DEFAULT_TEXT_MODEL, "dimension": 384,
            "rows": 3, "has_images": False,
        }  # fmt: skip
        assert listed[0] == client.get(f"/collections/{TEXTS}").json() == expected
        assert client.get(f"/collections/{PHYSICAL}").json() == {**expected, "name": PHYSICAL}
        assert [(each["name"], each["rows"], each["has_images"]) for each in listed[1:]] == [(PICTURES, 3, True)]


def test_a_collection_that_is_not_there(client: httpx2.Client) -> None:
    for path in ("/collections/nowhere", "/collections/nowhere/rows/1", "/collections/nowhere/rows/1/thumbnail"):
        assert "nowhere" in problem(client.get(path), HTTPStatus.NOT_FOUND)["detail"]
    assert problem(client.post("/collections/nowhere/search", json={"query": "x"}), HTTPStatus.NOT_FOUND)
    assert fields(client.get("/collections/_aliases")) == ["name"]
    assert fields(client.post("/collections/..%5Cx/search", json={"query": "x"})) == ["name"]


def test_only_who_may_read_is_let_in(settings: Settings) -> None:
    with served(settings, Caller.of("nobody")) as client:
        for path in ("", f"/{TEXTS}", f"/{TEXTS}/rows/1", f"/{TEXTS}/rows/1/thumbnail"):
            assert "read" in problem(client.get(f"/collections{path}"), HTTPStatus.FORBIDDEN)["detail"]
        assert problem(client.post(SEARCH, json={"query": "x"}), HTTPStatus.FORBIDDEN)


# ---- search


def test_hits_are_those_of_the_command(settings: Settings, vectorize_here: Vectorize) -> None:
    store_texts(settings)
    with served(settings) as client:
        where = "year exists and not title exists"
        answer = client.post(SEARCH, json={"query": QUESTION, "limit": 2, "filter": where})
        command = ("search", QUESTION, "--collection", TEXTS, "--limit", 2, "--filter", where, "--json")
        found = answer.json()
        assert same_hits(found["hits"], vectorize_here(*command).json)
        assert (found["collection"], found["model"], len(found["hits"])) == (TEXTS, DEFAULT_TEXT_MODEL, 2)
        assert [list(hit) for hit in found["hits"]] == [["score", *RECORD_FIELDS]] * 2
        assert sources(client.post(SEARCH, json={"query": QUESTION}))[0] == "hens.md"
        assert sources(client.post(f"/collections/{PHYSICAL}/search", json={"query": "灯塔", "limit": 1})) == [
            "灯塔.md"
        ]
        half = client.post(SEARCH, json={"query": "灯塔", "filter": "language = zh"}).json()["hits"][0]
        assert half["metadata"] == DOCUMENTS["灯塔.md"][1]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, {"hens.md", "lamp.md", "灯塔.md"}),
        ("language=en", {"hens.md", "lamp.md"}),
        ("title=Hens, and others", {"hens.md"}),
        ("year = 1987 and language in (zh, de)", {"灯塔.md"}),
        ("year >= 1970", {"hens.md", "lamp.md", "灯塔.md"}),
        ({"field": "year", "range": {"gte": 1970}}, {"hens.md", "lamp.md"}),
        ("page < 2 or source_id prefix lamp", {"hens.md", "lamp.md"}),
        ({"field": "year", "equals": 1987}, {"lamp.md"}),
        ({"not": {"or": [{"field": "title", "exists": True}, {"field": "page", "range": {"gt": 2}}]}}, {"lamp.md"}),
        ({"and": []}, {"hens.md", "lamp.md", "灯塔.md"}),
        ({"field": "occurred_at", "range": {"lt": "2024-02-29T12:00"}}, set()),
    ],
)
def test_filters(client: httpx2.Client, where: Any, expected: set[str]) -> None:
    answer = client.post(SEARCH, json={"query": QUESTION, "filter": where})
    assert set(sources(answer)) == expected


def test_a_search_by_vector(client: httpx2.Client, settings: Settings) -> None:
    with lease_configured(settings, DEFAULT_TEXT_MODEL) as encoder:
        vector = encoder.encode([DOCUMENTS["lamp.md"][0]])[0]
    answer = client.post(SEARCH, json={"vector": vector.tolist(), "limit": 1})
    assert sources(answer) == ["lamp.md"]
    assert answer.json()["hits"][0]["score"] == pytest.approx(1, abs=1e-3)
    assert sources(client.post(SEARCH, json={"vector": [1] * 384, "limit": 1}))


@pytest.mark.parametrize(
    ("body", "named", "said"),
    [
        ({}, ["query", "image", "vector"], "exactly one of query, image and vector"),
        ({"query": "x", "vector": [1.0]}, ["query", "vector"], "query and vector was given"),
        ({"query": None, "image": None}, ["query", "image", "vector"], "none of them was given"),
        ({"query": " \n"}, ["query"], "nothing to search for"),
        ({"query": 5}, ["query"], "string"),
        ({"query": "x" * 70_000}, ["query"], "65536"),
        ({"query": "x", "limit": 0}, ["limit"], "greater than or equal to 1"),
        ({"query": "x", "limit": 1001}, ["limit"], "less than or equal to 1000"),
        ({"query": "x", "limit": True}, ["limit"], "integer"),
        ({"query": "x", "colour": "red"}, ["colour"], "not permitted"),
        ({"vector": [1.0] * 383}, ["vector"], "has 383 numbers; vectors of articles have 384"),
        ({"vector": []}, ["vector"], "at least 1"),
        ({"vector": [0.0] * 384}, ["vector"], "points nowhere"),
        ({"vector": [1e300] + [0.0] * 383}, ["vector"], "points nowhere"),
        ({"vector": [1e30] * 384}, ["vector"], "points nowhere"),
        ({"vector": [10**400] * 384}, ["vector[0]"], "number"),
        ({"vector": ["1"] * 384}, ["vector[0]"], "number"),
        ({"image": "/etc/passwd"}, ["image"], "no data: URI"),
        ({"image": "file:///etc/passwd"}, ["image"], "no data: URI"),
        ({"image": "data:image/png;base64,iVBORw0KGgo="}, ["image"], f"{DEFAULT_TEXT_MODEL}, which takes text"),
        ({"query": "x", "filter": "page >= three"}, ["filter"], "character 9: 'three' is no value of 'page'"),
        ({"query": "x", "filter": {"and": [{"field": "page", "equals": "3"}]}}, ["filter.and[0].equals"], "'page'"),
        ({"query": "x", "filter": {}}, ["filter"], "an empty object"),
        ({"query": "x", "filter": 5}, ["filter"], "expected an object, found 5"),
        ({"query": "x", "filter": "\ud800 <"}, ["filter"], "expected a value"),
    ],
)
def test_what_is_wrong_is_named(client: httpx2.Client, body: dict[str, Any], named: list[str], said: str) -> None:
    answer = client.post(SEARCH, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert fields(answer) == named
    assert said in answer.json()["detail"]


@pytest.mark.parametrize("content", [b'{"vector": [NaN]}', b'{"vector": [-Infinity, 1]}', b'{"query"', b"[]", b"\xff"])
def test_bodies_that_are_no_search(client: httpx2.Client, content: bytes) -> None:
    answer = client.post(SEARCH, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
    assert answer.headers["Content-Type"] == "application/problem+json"
    deep = b'{"query": "x", "filter": ' + b'{"not": ' * 5_000 + b"{}" + b"}" * 5_001
    refused = client.post(SEARCH, content=deep, headers={"Content-Type": "application/json"})
    assert refused.status_code in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)


def test_images_are_searched_by_image_and_by_text(
    settings: Settings, pictures: list[Path], vectorize_here: Vectorize, tmp_path: Path
) -> None:
    path = f"/collections/{PICTURES}/search"
    with served(settings) as client:
        answer = client.post(path, json={"image": data_uri(pictures[1].read_bytes()), "limit": 2})
        command = ("search", "--image", pictures[1], "--collection", PICTURES, "--limit", 2, "--json")
        assert sources(answer)[0] == str(pictures[1])
        assert same_hits(answer.json()["hits"], vectorize_here(*command).json)
        assert len(sources(client.post(path, json={"query": "a red boat", "filter": "name prefix 2"}))) == 1

        for image, said in (
            (data_uri(pictures[0].read_bytes()[:2_000]), "cannot be decoded"),
            (data_uri(b"no picture"), "not an image"),
            ("data:image/png;base64,!", "base64"),
            ("data:,", "no bytes"),
            (pictures[0].as_uri(), "no data: URI"),
            (str(pictures[0]), "no data: URI"),
        ):
            refused = client.post(path, json={"image": image})
            assert fields(refused) == ["image"]
            assert said in refused.json()["detail"]


def test_an_image_has_a_limit(home: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    content = pictures[0].read_bytes()
    monkeypatch.setenv("VECTORIZE_IMAGES__MAX_FILE_BYTES", str(len(content) - 1))
    with served(load_settings()) as client:
        refused = client.post(f"/collections/{PICTURES}/search", json={"image": data_uri(content)})
        assert fields(refused) == ["image"]
        assert "bytes that are allowed" in refused.json()["detail"]


def test_a_model_that_is_gone_is_no_missing_collection(settings: Settings) -> None:
    store = open_store(settings.store, settings.home)
    store.ensure_collection("orphans", spec(str(settings.home / "no such model")))
    store.close()
    with served(settings) as client:
        answer = client.post("/collections/orphans/search", json={"query": "x"})
        assert (
            "the model that filled orphans cannot be used" in problem(answer, HTTPStatus.SERVICE_UNAVAILABLE)["detail"]
        )
        assert sources(client.post("/collections/orphans/search", json={"vector": [1, 0, 0, 0]})) == []


# ---- what happens meanwhile


def test_a_collection_that_gets_another_model_meanwhile_is_searched_as_it_was(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = HeldEncoder()
    models = Models(encoder)
    monkeypatch.setattr(services, "lease_configured", lambda settings, model: models.lease(model))
    store = open_store(settings.store, settings.home)
    store.ensure_collection("notes", encoder.spec)
    store.upsert("notes", table([row("old.md", vector=vector_of("old"))], DIMENSION))
    other = store.ensure_collection("notes", spec(), aliased=False)
    store.upsert(other.physical, table([row("new.md")]))
    store.flush(("notes", other.physical))
    encoder.hold()
    with served(settings) as client, ThreadPoolExecutor() as threads:
        answer = threads.submit(client.post, "/collections/notes/search", json={"query": "x"})
        asyncio.run(encoder.begun())
        store.set_alias("notes", other.physical)
        encoder.let_go()
        assert sources(answer.result()) == ["old.md"]
        assert client.get("/collections/notes").json()["physical"] == other.physical
    store.close()


def test_a_query_goes_to_the_model_that_the_collection_has_by_now(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = HeldEncoder(), HeldEncoder("models/later")
    models = Models(before, after)
    monkeypatch.setattr(services, "lease_configured", lambda settings, model: models.lease(model))
    store = open_store(settings.store, settings.home)
    store.ensure_collection("notes", before.spec)
    later = store.ensure_collection("notes", after.spec, aliased=False)
    for physical in ("notes", later.physical):
        rows = [row(f"{text}.md", vector=vector_of(text, "query")) for text in ("x", "another")]
        store.upsert(physical, table(rows, DIMENSION))
    store.flush(("notes", later.physical))
    with served(settings) as client:
        for model in (before.spec.name, before.spec.name):
            answer = client.post("/collections/notes/search", json={"query": "x"}).json()
            assert (answer["model"], models.loads) == (model, [before.spec.name])
        store.set_alias("notes", later.physical)
        answer = client.post("/collections/notes/search", json={"query": "x"}).json()
        assert (answer["model"], models.loads) == (after.spec.name, [before.spec.name, after.spec.name])
        assert answer["hits"][0]["source_id"] == "x.md"
        store.drop(later.physical)
        assert client.post("/collections/notes/search", json={"query": "x"}).status_code == HTTPStatus.NOT_FOUND
    store.close()


def test_a_client_that_hangs_up_gives_its_place_back(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, begun, ends = HeldEncoder(), threading.Event(), threading.Event()
    queues: list[EncodingQueue] = []

    @contextmanager
    def lease(settings: Settings, model: str) -> Iterator[Encoder]:
        begun.set()
        assert ends.wait(SECONDS)
        yield encoder

    def queue(*arguments: Any) -> EncodingQueue:
        queues.append(EncodingQueue(*arguments))
        return queues[-1]

    monkeypatch.setattr(services, "lease_configured", lease)
    monkeypatch.setattr(services, "EncodingQueue", queue)
    store = open_store(settings.store, settings.home)
    store.ensure_collection("notes", encoder.spec)
    store.close()
    body = b'{"query": "first"}'
    with served(settings) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as connection:
            connection.sendall(
                b"POST /collections/notes/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            assert begun.wait(SECONDS)
            assert queues[0].waiting == 1
        until("the query to be forgotten", lambda: queues[0].waiting == 0)
        ends.set()
        assert sources(client.post("/collections/notes/search", json={"query": "second"})) == []
        assert encoder.calls == [["second"]]


def test_a_store_that_is_away_is_said_to_be_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("VECTORIZE_STORE__KIND", "weaviate")
    monkeypatch.setenv("VECTORIZE_STORE__URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("VECTORIZE_STORE__WEAVIATE__RETRIES", "0")
    with served(load_settings()) as client:
        for answer in (
            client.get("/collections"),
            client.get(f"/collections/{TEXTS}"),
            client.get(f"/collections/{TEXTS}/rows/1"),
            client.post(SEARCH, json={"query": "x"}),
        ):
            assert str(port) in problem(answer, HTTPStatus.SERVICE_UNAVAILABLE)["detail"]
            assert answer.headers["Retry-After"]


def test_a_store_that_could_not_be_opened_is_opened_later(home: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("where the store's folder is to lie")
    settings = load_settings(store={"url": str(blocked / "lancedb")})

    async def main() -> None:
        store = OpenedStore(settings)
        for _ in range(2):
            with pytest.raises(StoreError):
                await store.call(VectorStore.collections)
        blocked.unlink()
        assert await store.call(lambda opened: opened.collections()) == []
        assert await store.call(lambda opened: opened) is store.get()
        store.close()

    asyncio.run(main())


def test_so_many_calls_of_the_store_are_under_way_at_most(settings: Settings) -> None:
    going, lock, ends = [0], threading.Lock(), threading.Event()

    def call(store: VectorStore) -> None:
        with lock:
            going[0] += 1
        assert ends.wait(SECONDS)

    async def main() -> None:
        store = OpenedStore(settings)
        calls = [asyncio.create_task(store.call(call)) for _ in range(3 * CALLS)]
        while going[0] < CALLS:
            await asyncio.sleep(0.01)
        for task in calls[CALLS:]:
            task.cancel()  # those that wait for their turn do nothing any more
        await asyncio.wait(calls[CALLS:])
        assert going[0] == CALLS
        ends.set()
        await asyncio.gather(*calls[:CALLS])
        assert going[0] == CALLS
        store.close()

    asyncio.run(main())


# ---- rows


def test_a_row_with_its_lineage(client: httpx2.Client) -> None:
    id_ = record_id(TEXTS, "lamp.md", 0)
    found = client.get(f"/collections/{TEXTS}/rows/{id_}").json()
    hit = client.post(SEARCH, json={"query": "lamp", "filter": "source_id = lamp.md"}).json()["hits"][0]
    assert {name: found[name] for name in RECORD_FIELDS} == {name: hit[name] for name in RECORD_FIELDS}
    assert {name: value for name, value in found.items() if name not in RECORD_FIELDS} == {
        "collection": TEXTS, "physical": PHYSICAL, "chunker": CHUNKER, "run_url": "/dagster/runs/run",
        "thumbnail_url": None,
    }  # fmt: skip
    assert found["model"].startswith(FINGERPRINT)
    for other in ("nothing", "' or 1=1 --", "%00", "%ED%A0%80"):
        assert problem(client.get(f"/collections/{TEXTS}/rows/{other}"), HTTPStatus.NOT_FOUND)
    assert fields(client.get(f"/collections/{TEXTS}/rows/{'x' * 300}")) == ["row_id"]


def test_the_schema_says_what_is_answered(settings: Settings) -> None:
    with served(settings) as client:
        schema = client.get("/openapi.json").json()
    routes = {path: methods for path, methods in schema["paths"].items() if path.startswith("/collections")}
    assert len(routes) == 5
    for methods in routes.values():
        for route in methods.values():
            assert route["summary"]
            own = {status: each for status, each in route["responses"].items() if "$ref" not in each}
            assert own.keys() <= {"200", "404", "422", "429"}, "the others are those of every route"
            errors = [tuple(each["content"]) for status, each in own.items() if status != "200"]
            assert set(errors) <= {("application/problem+json",)}
    parts = schema["components"]["schemas"]
    assert list(parts["HitModel"]["properties"]) == [*RECORD_FIELDS, "score"]
    assert set(parts["RowModel"]["properties"]) > set(RECORD_FIELDS)
    assert [each["type"] for each in parts["SearchRequest"]["properties"]["filter"]["anyOf"]] == [
        "string",
        "object",
        "null",
    ]
