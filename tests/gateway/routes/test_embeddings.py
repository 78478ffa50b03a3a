"""Embeddings over HTTP with the client of OpenAI, against a real server and the real model."""

import asyncio
import base64
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx  # noqa: F401 -- openai's client looks into it as soon as Weaviate's begins to import it, in the server
import httpx2
import numpy as np
import openai
import pytest

from tests.encoders.texts import ODD, passages
from tests.encoders.tiny_models import add_modules, build_encoder
from tests.encoders.tokenizers import local_tokenizer
from tests.gateway.encoding.held_encoder import SECONDS, HeldEncoder, vector_of
from tests.gateway.running import as_caller, running
from tests.servers.dev import until
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.encoders import load_encoder
from vectorize_pipelines.encoders.base import Encoder, EncoderSpec, Vectors
from vectorize_pipelines.encoders.configured import describe_options, lease_configured, load_options
from vectorize_pipelines.gateway import services
from vectorize_pipelines.gateway.app import create_routes
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.door.auth import Caller, Scope
from vectorize_pipelines.gateway.encoding.batching import EncodingQueue
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, Settings, load_settings
from vectorize_pipelines.settings.models import DEFAULT_IMAGE_MODEL
from vectorize_pipelines.stores import open_store

pytestmark = pytest.mark.slow

MODEL = DEFAULT_TEXT_MODEL
READER = Caller.of("reader", Scope.READ)

#: A client waits while the model is exported, which is done once.
LONG_SECONDS = 280.0

#: More numbers than are written by the event loop, texts beyond the model's length, several scripts.
TEXTS = [*passages(90, longest=40), *(text for text in ODD if text)]


@contextmanager
def served(settings: Settings, caller: Caller = READER) -> Iterator[str]:
    """The address of a server; Dagster is not asked for embeddings."""
    app = create_routes(settings, DagsterAddress("http://127.0.0.1:1"))
    with running(as_caller(app, caller)) as url:
        yield url


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=LONG_SECONDS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, exported_models: Path) -> Iterator[str]:
    """One server for all tests that only ask it for embeddings."""
    home = tmp_path_factory.mktemp("home")
    (home / "encoders").symlink_to(exported_models)
    settings = load_settings({"VECTORIZE_HOME": str(home)})
    encoded(settings, ["a text"])  # exports the model, once for all tests
    with served(settings) as url:
        yield url


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


def encoded(settings: Settings, texts: list[str], *, model: str = MODEL, dimension: int | None = None) -> Vectors:
    with lease_configured(settings, model, dimension) as encoder:
        return encoder.encode(texts)


def vectors_in(answer: Any) -> Vectors:
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    return np.asarray([each.embedding for each in answer.data], dtype=np.float32)


def same(vectors: Vectors, wanted: Vectors) -> bool:
    """Return whether vectors are those of the same texts: what is in a batch beside a text moves its last digits."""
    cosines = np.sum(vectors * wanted, axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(wanted, axis=1)
    return vectors.shape == wanted.shape and bool(cosines.min() > 0.9999)


@pytest.mark.parametrize("encoding_format", [None, "base64", "float"])
def test_vectors_are_those_of_encode(client: openai.OpenAI, settings: Settings, encoding_format: str | None) -> None:
    given: Any = {} if encoding_format is None else {"encoding_format": encoding_format}
    answer: Any = client.embeddings.create(input=TEXTS, model=MODEL, **given)
    if encoding_format == "base64":
        vectors = np.stack([np.frombuffer(base64.b64decode(each.embedding), dtype="<f4") for each in answer.data])
    else:
        vectors = vectors_in(answer)
    assert same(vectors, encoded(settings, TEXTS))
    assert answer.model == MODEL
    counts = [len(ids) for ids in local_tokenizer(MODEL, **describe_options(settings)).ids(TEXTS)]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(counts)
    assert max(counts) == 256, "one text is truncated"
    assert answer.usage.truncated_tokens > 0


def test_numbers_lose_nothing(client: openai.OpenAI) -> None:
    """One text alone has the same vector each time: as numbers it is the very one that base64 has."""
    for text in passages(8):
        answer: Any = client.embeddings.create(input=text, model=MODEL, encoding_format="base64")
        (exact,) = [np.frombuffer(base64.b64decode(each.embedding), dtype="<f4") for each in answer.data]
        numbers = vectors_in(client.embeddings.create(input=text, model=MODEL, encoding_format="float"))
        np.testing.assert_array_equal(numbers[0], exact)


def test_half_a_character_is_taken_as_everywhere(server: str, settings: Settings) -> None:
    body = b'{"model": "%b", "input": "half of a pair: \\ud83d"}' % MODEL.encode()
    answer = httpx2.post(f"{server}/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
    vector = np.asarray(answer.json()["data"][0]["embedding"], dtype=np.float32)
    assert same(vector[None], encoded(settings, ["half of a pair: \ufffd"]))


@pytest.mark.parametrize("dimensions", [1, 64, 384])
def test_dimensions(client: openai.OpenAI, settings: Settings, dimensions: int) -> None:
    vectors = vectors_in(client.embeddings.create(input=TEXTS[:9], model=MODEL, dimensions=dimensions))
    assert vectors.shape == (9, dimensions)
    assert same(vectors, encoded(settings, TEXTS[:9], dimension=dimensions))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_another_name_of_the_model(client: openai.OpenAI, settings: Settings) -> None:
    answer = client.embeddings.create(input="a text", model="all-MiniLM-L6-v2")
    assert answer.model == MODEL
    assert same(vectors_in(answer), encoded(settings, ["a text"]))


def test_queries_have_the_prompt_of_queries(home: Path, tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "storm before ", "document": "the harbour "}}
    folder = add_modules(
        build_encoder(tmp_path / "tiny", "bert"), pooling={"pooling_mode_mean_tokens": True}, general=prompts
    )
    settings = load_settings(models={"text": str(folder)})
    texts = passages(20, longest=20)
    encoder = load_encoder(str(folder), "cpu", **load_options(settings))
    with served(settings) as url, client_of(url) as client:
        documents = client.embeddings.create(input=texts, model=str(folder))
        queries = client.embeddings.create(input=texts, model=str(folder), extra_body={"input_type": "query"})
    assert same(vectors_in(documents), encoder.encode(texts))
    assert same(vectors_in(queries), encoder.encode(texts, "query"))
    assert not same(vectors_in(queries), vectors_in(documents))
    tokenizer = local_tokenizer(str(folder), **describe_options(settings))
    for answer, prompt in ((documents, "the harbour "), (queries, "storm before ")):
        assert answer.usage.total_tokens == sum(len(ids) for ids in tokenizer.ids(texts, prompt))
    encoder.close()


def test_many_clients_at_once(server: str, settings: Settings) -> None:
    texts = passages(64, longest=60)

    async def main() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=LONG_SECONDS
        ) as client:
            return await asyncio.gather(*(client.embeddings.create(input=text, model=MODEL) for text in texts))

    answers = asyncio.run(main())
    assert same(np.concatenate([vectors_in(answer) for answer in answers]), encoded(settings, texts))


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": ["a text", ""]}, "input", r"\[1\] is empty"),
        ({"input": []}, "input", "a text or a list"),
        ({"input": None}, "input", "a text or a list"),
        ({"input": {"text": "a text"}}, "input", "a text or a list"),
        ({"input": [1, 2, 3]}, "input", "token arrays are not taken"),
        ({"input": [[1, 2], [3]]}, "input", "token arrays are not taken"),
        ({"input": ["a text", None]}, "input", r"\[1\] is not a text"),
        ({"input": ["a text"] * 2049}, "input", "2048"),
        ({"input": "a text", "dimensions": 385}, "dimensions", "384 dimensions"),
        ({"input": "a text", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"input": "a text", "encoding_format": "int8"}, "encoding_format", "float"),
        ({"input": "a text", "input_type": "passage"}, "input_type", "document"),
        ({"input": "a text", "model": ""}, "model", "at least 1"),
        ({"input": "a text", "model": None}, "model", "string"),
        ({"input": "a text", "model": "m" * 501}, "model", "at most 500"),
    ],
)
def test_bad_requests(server: str, client: openai.OpenAI, fields: dict[str, Any], param: str, message: str) -> None:
    answer = httpx2.post(f"{server}/v1/embeddings", json={"model": MODEL, **fields})
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client.post("/embeddings", body={"model": MODEL, **fields}, cast_to=object)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"),
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b'"a text"', "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"model": "m", "input": "a text"}', "text/plain"),
        (b"input=a+text", "application/x-www-form-urlencoded"),
    ],
)
def test_bodies_that_are_no_request(server: str, content: bytes, kind: str) -> None:
    answer = httpx2.post(f"{server}/v1/embeddings", content=content, headers={"Content-Type": kind})
    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_models_of_strangers_are_not_looked_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not even where requests over Kafka may name any model."""

    def lease(*arguments: object) -> Any:
        raise AssertionError("a stranger's model was asked for")

    monkeypatch.setattr(services, "lease_configured", lease)
    anything = load_settings(kafka={"allowed_models": ["*"]}, uris={"allowed_roots": [str(tmp_path)]})
    names = ["somebody/model", "gpt-4", str(tmp_path), "../model", "ViT-L/14", "hf-hub:somebody/model", "nul\0"]
    for each in (settings, anything):
        with served(each) as url, client_of(url) as client:
            for name in names:
                with pytest.raises(openai.NotFoundError, match="is not served") as refused:
                    client.embeddings.create(input="a text", model=name)
                assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("somebody/model")


def test_models(settings: Settings) -> None:
    spec = EncoderSpec("somebody/model", "0" * 12, 8, 64, "mean", "", "", frozenset({Modality.TEXT}), True)
    store = open_store(settings.store, settings.home)
    store.ensure_collection("articles", spec)
    store.close()
    allowed = load_settings(kafka={"allowed_models": ["another/model", "*"]})
    with served(allowed) as url, client_of(url) as client:
        listed = [each.id for each in client.models.list()]
        assert listed == [MODEL, DEFAULT_IMAGE_MODEL, "another/model", "somebody/model"]
        for name in listed:
            assert client.models.retrieve(name).id == name
        assert client.models.retrieve("all-MiniLM-L6-v2").id == MODEL
        assert client.models.retrieve("ViT-B-32:openai").id == DEFAULT_IMAGE_MODEL
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("somebody/other")


def test_a_model_that_cannot_be_loaded(home: Path, tmp_path: Path) -> None:
    settings = load_settings(models={"text": str(tmp_path / "nothing")})
    with (
        served(settings) as url,
        client_of(url) as client,
        pytest.raises(openai.NotFoundError, match="nothing") as refused,
    ):
        client.embeddings.create(input="a text", model=str(tmp_path / "nothing"))
    assert refused.value.code == "model_not_found"


def test_the_store_is_asked_only_for_models_that_are_not_the_settings(home: Path) -> None:
    away = load_settings(store={"kind": "weaviate", "url": "http://127.0.0.1:1"})
    with served(away) as url, client_of(url) as client:
        assert client.embeddings.create(input="a text", model=MODEL).data
        for call in (
            lambda: client.embeddings.create(input="a text", model="somebody/model"),
            lambda: client.models.retrieve("somebody/model"),
            client.models.list,
        ):
            with pytest.raises(openai.InternalServerError) as failed:
                call()
            assert failed.value.status_code == HTTPStatus.SERVICE_UNAVAILABLE
            assert failed.value.response.headers["Retry-After"]


def test_callers_need_the_scope(settings: Settings) -> None:
    with served(settings, Caller("nobody", frozenset())) as url, client_of(url) as client:
        for call in (
            lambda: client.embeddings.create(input="a text", model=MODEL),
            lambda: client.models.retrieve(MODEL),
            client.models.list,
        ):
            with pytest.raises(openai.PermissionDeniedError, match="lacks the scope read") as refused:
                call()
            assert refused.value.type == "permission_error"


@dataclass
class Loading:
    """A model whose load has begun, and ends when the test says so."""

    encoder: HeldEncoder = field(default_factory=HeldEncoder)
    begun: threading.Event = field(default_factory=threading.Event)
    ends: threading.Event = field(default_factory=threading.Event)
    queues: list[EncodingQueue] = field(default_factory=list)

    @contextmanager
    def lease(self, settings: Settings, model: str) -> Iterator[Encoder]:
        self.begun.set()
        assert self.ends.wait(SECONDS)
        yield self.encoder

    def queue(self, *arguments: Any) -> EncodingQueue:
        self.queues.append(EncodingQueue(*arguments))
        return self.queues[-1]


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Loading:
    """The load of every model; one text may wait for it."""
    loading = Loading()
    monkeypatch.setattr(services, "lease_configured", loading.lease)
    monkeypatch.setattr(services, "EncodingQueue", loading.queue)
    monkeypatch.setenv("VECTORIZE_GATEWAY__MAX_WAITING_TEXTS", "1")
    return loading


def test_a_full_queue(home: Path, loading: Loading) -> None:
    with served(load_settings()) as url, client_of(url) as client, ThreadPoolExecutor() as threads:
        first = threads.submit(client.embeddings.create, input="first", model=MODEL)
        assert loading.begun.wait(SECONDS)
        with pytest.raises(openai.RateLimitError, match="try again in") as refused:
            client.embeddings.create(input="second", model=MODEL)
        assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "rate_limit_error")
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        with pytest.raises(openai.APIStatusError, match="send fewer at once") as too_large:
            client.embeddings.create(input=["one", "two"], model=MODEL)
        assert too_large.value.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        loading.ends.set()
        np.testing.assert_allclose(vectors_in(first.result()), [vector_of("first")])
        np.testing.assert_allclose(
            vectors_in(client.embeddings.create(input="second", model=MODEL)), [vector_of("second")]
        )


def test_a_client_that_hangs_up_gives_its_place_back(home: Path, loading: Loading) -> None:
    body = b'{"model": "%b", "input": "first"}' % MODEL.encode()
    with served(load_settings()) as url, client_of(url) as client:
        address = urlsplit(url)
        with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
            connection.sendall(
                b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            assert loading.begun.wait(SECONDS)
            (queue,) = loading.queues
            assert queue.waiting == 1
        until("the text to be forgotten", lambda: queue.waiting == 0)
        loading.ends.set()
        client.embeddings.create(input="second", model=MODEL)
        assert loading.encoder.calls == [["second"]]


def test_the_schema_says_what_is_answered(server: str) -> None:
    schema = httpx2.get(f"{server}/openapi.json").json()
    embeddings = schema["paths"]["/v1/embeddings"]["post"]
    assert {"200", "400", "401", "403", "404", "413", "429", "500", "503"} <= embeddings["responses"].keys()
    assert "422" not in embeddings["responses"], "errors of the request are answered as OpenAI does"
    request = schema["components"]["schemas"]["EmbeddingRequest"]["properties"]
    assert {each["type"] for each in request["input"]["anyOf"]} == {"string", "array"}
