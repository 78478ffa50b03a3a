"""An installation with a broker, for tests of runs over messages: what is sent to it, and what became of that."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.base import Encoder, EncoderSpec, EngineChoice, Purpose, Vectors
from vectorize_pipelines.kafka.clients import consumer, producer
from vectorize_pipelines.kafka.topics import TopicNames, create_topics
from vectorize_pipelines.pipeline.requests.runs import DrainRequest, ReplayRequest, open_drain, open_replay
from vectorize_pipelines.pipeline.requests.stream import RequestStream
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, Settings, load_settings
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore

#: Of the vectors: as few as make two texts' vectors differ.
DIMENSION = 8
FINAL = ("completed", "failed", "cancelled")
SECONDS = 30.0


def vector_of(text: str | bytes) -> Vectors:
    """The vector that `HashEncoder` gives a text: the same in every process."""
    data = text.encode() if isinstance(text, str) else text
    numbers = np.frombuffer(hashlib.blake2b(data, digest_size=4 * DIMENSION).digest(), dtype="<u4")
    vector = (numbers / 2**31 - 1).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


class HashEncoder(Encoder):
    """Gives each text a vector of its own, the same every time."""

    def __init__(self, spec: EncoderSpec | None = None, on_encode: Callable[[Sequence[Any]], None] | None = None):
        self.spec = spec or describe_model(DEFAULT_TEXT_MODEL, dimension=DIMENSION)
        self.choice = EngineChoice("hash", "cpu", "float32", "for tests")
        self._on_encode = on_encode

    def encode(self, items: Sequence[Any], purpose: Purpose = "document") -> Vectors:
        if self._on_encode is not None:
            self._on_encode(items)
        return np.stack([np.resize(vector_of(item), self.spec.dimension) for item in items])

    def close(self) -> None:
        """Nothing to free."""


def text_request(task_id: str | None, data: str, **fields: Any) -> dict[str, Any]:
    """The JSON of a request for one text."""
    return {"task_type": "text_vectorization", "data": data, **({"task_id": task_id} if task_id else {}), **fields}


def batch_request(task_id: str, data: Sequence[Any], **fields: Any) -> dict[str, Any]:
    """The JSON of a request for several texts."""
    return {"task_id": task_id, "task_type": "batch_vectorization", "data": list(data), **fields}


@dataclass
class Installation:
    """`sent` counts the messages of each topic and partition that were sent through it."""

    settings: Settings
    store: VectorStore
    modality: Modality = Modality.TEXT
    on_encode: Callable[[Sequence[Any]], None] | None = None
    sent: Counter[tuple[str, int]] = field(default_factory=Counter)
    _runs: int = 0
    _producer: Any = None

    @property
    def names(self) -> TopicNames:
        return TopicNames(self.settings.kafka.topic_prefix)

    @contextmanager
    def lease(self, model: str, dimension: int | None) -> Iterator[Encoder]:
        yield HashEncoder(describe_model(model, dimension=dimension), self.on_encode)

    # What is sent

    def send(
        self,
        *messages: Mapping[str, Any] | bytes | None,
        key: bytes | None = None,
        priority: bool = False,
        partition: int | None = None,
        at: int | datetime = 0,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> None:
        """Sends messages; those with a `task_id` have it as their key. `at`: their time, by default now."""
        topic = self.names.lane(self.modality, int(priority))
        if self._producer is None:
            create_topics(self.settings.kafka)
            self._producer = producer(self.settings.kafka)
        client = self._producer
        errors: list[object] = []

        def delivered(error: object, message: Any) -> None:
            if error is not None:
                errors.append(error)
            else:
                self.sent[message.topic(), message.partition()] += 1

        milliseconds = round(at.timestamp() * 1000) if isinstance(at, datetime) else at
        further: dict[str, Any] = {} if partition is None else {"partition": partition}
        for message in messages:
            task_id = message.get("task_id") if isinstance(message, Mapping) else None
            value = json.dumps(message).encode() if isinstance(message, Mapping) else message
            while True:
                try:
                    client.produce(
                        topic,
                        value,
                        task_id.encode() if isinstance(task_id, str) else key,
                        timestamp=milliseconds,
                        headers=list(headers),
                        on_delivery=delivered,
                        **further,
                    )
                except BufferError:
                    client.poll(1)
                else:
                    break
        assert client.flush(SECONDS) == 0
        assert not errors, errors[:3]

    # What is run

    def open_drain(self, **options: Any) -> RequestStream:
        """A drain run that ends when nothing is outstanding, unless `options` say otherwise."""
        self._runs += 1
        shard: Shard = options.pop("shard", WHOLE)
        request = DrainRequest(
            self.modality, options.pop("run_id", f"run-{self._runs}"), shard, **{"once": True, **options}
        )
        return open_drain(self.settings, request, self.store, self.lease)

    def drain(self, **options: Any) -> RequestStream:
        """Drains to the end."""
        with self.open_drain(**options) as stream:
            for _ in written(DirectWriter(self.settings, self.store), stream):
                pass
        return stream

    def open_replay(self, first: date | None = None, last: date | None = None, **options: Any) -> RequestStream:
        """A replay of days, both included, by default all that there are."""
        self._runs += 1
        window = (first or self.settings.partitions.start, last or datetime.now(UTC).date())
        request = ReplayRequest(self.modality, options.pop("run_id", f"run-{self._runs}"), window, **options)
        return open_replay(self.settings, request, self.store, self.lease)

    def replay(self, first: date | None = None, last: date | None = None, **options: Any) -> RequestStream:
        """Replays to the end."""
        with self.open_replay(first, last, **options) as stream:
            for _ in written(DirectWriter(self.settings, self.store), stream):
                pass
        return stream

    # What became of it

    def rows(self, collection: str = "texts") -> dict[tuple[str, int], dict[str, Any]]:
        """What a collection holds, by task and index: every column, the vector as a tuple."""
        return stored_rows(self.store, collection)

    def texts(self, collection: str = "texts") -> dict[tuple[str, int], str]:
        """The texts alone."""
        return {place: row["text"] for place, row in self.rows(collection).items()}

    def ledger(self) -> dict[str, RequestRow]:
        """Every row of the ledger, by request."""
        return ledger_rows(self.settings)

    def events(self) -> list[dict[str, Any]]:
        """Every event in the results topic, in the order of each partition."""
        return [json.loads(message.value()) for message in self.read(self.names.results)]

    def final_events(self) -> dict[str, list[str]]:
        """The final states of each request, in the order in which they were told."""
        found: dict[str, list[str]] = {}
        for event in self.events():
            if event["status"] in FINAL:
                found.setdefault(event["task_id"], []).append(event["status"])
        return found

    def letters(self) -> list[Any]:
        """Every message in the dead-letter topic."""
        return self.read(self.names.dead_letter)

    def read(self, topic: str) -> list[Any]:
        """Every committed message of a topic."""
        from confluent_kafka import KafkaError, TopicPartition

        client = consumer(
            self.settings.kafka, group="reading", **{"enable.partition.eof": True, "fetch.wait.max.ms": 10}
        )
        try:
            numbers = client.list_topics(topic, timeout=SECONDS).topics[topic].partitions
            client.assign([TopicPartition(topic, number, 0) for number in numbers])
            found, ended = [], set[int]()
            while len(ended) < len(numbers):
                for message in client.consume(1000, timeout=0.1):
                    error = message.error()
                    if error is None:
                        found.append(message)
                        continue
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    ended.add(message.partition() or 0)
            return found
        finally:
            client.close()

    def outstanding(self) -> dict[tuple[str, int], tuple[int, int]]:
        """The partitions whose committed offset is not their end: both. A partition without messages has neither."""
        from confluent_kafka import TopicPartition

        client = consumer(self.settings.kafka)
        try:
            left = {}
            for topic in self.names.lanes(self.modality):
                numbers = client.list_topics(topic, timeout=SECONDS).topics[topic].partitions
                wanted = [TopicPartition(topic, number) for number in numbers]
                for each in client.committed(wanted, timeout=SECONDS):
                    _, end = client.get_watermark_offsets(each, timeout=SECONDS)
                    if max(0, each.offset) != end:
                        left[topic, each.partition] = (each.offset, end)
            return left
        finally:
            client.close()


def clock_of_yesterday() -> type[datetime]:
    """Stands in for `datetime` in a module: its now was a day ago."""
    moment = datetime.now(UTC) - timedelta(days=1)

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return moment

    return Yesterday


MakeInstallation = Callable[..., Installation]


def install(home: Path, bootstrap_servers: str, topic_prefix: str, **overrides: Any) -> Installation:
    """An installation in `home` on a broker; `overrides` is a tree of settings."""
    kafka = {"bootstrap_servers": bootstrap_servers, "topic_prefix": topic_prefix, **overrides.pop("kafka", {})}
    models = {"dimension": DIMENSION, **overrides.pop("models", {})}
    settings = load_settings({}, home=home, kafka=kafka, models=models, cache={"enabled": "off"}, **overrides)
    return Installation(settings, open_store(settings.store, settings.home))


def stored_rows(store: VectorStore, collection: str) -> dict[tuple[str, int], dict[str, Any]]:
    """What a collection holds, by source and index; each at most once, and with the vector of its own text."""
    from vectorize_pipelines.core.records import RECORD_FIELDS

    found: dict[tuple[str, int], dict[str, Any]] = {}
    for batch in store.scan(collection, (*RECORD_FIELDS, "vector")):
        for row in batch.to_pylist():
            place = (row["source_id"], row["item_index"])
            assert place not in found, f"{place} is there twice"
            row["vector"] = tuple(row["vector"])
            if row["text"] is not None:
                expected = np.resize(vector_of(row["text"]), len(row["vector"]))
                assert np.allclose(row["vector"], expected, atol=1e-6), f"{place} has another text's vector"
            found[place] = row
    return found


def ledger_rows(settings: Settings) -> dict[str, RequestRow]:
    """Every row of an installation's ledger, by request."""
    ledger = RequestLedger.open(settings)
    found: dict[str, RequestRow] = {}
    try:
        place: str | None = None
        while True:
            page = ledger.page(limit=1000, after=place)
            found.update((row.request_id, row) for row in page.rows)
            place = page.next
            if place is None:
                return found
    finally:
        ledger.close()


def check_finished(installation: Installation, *, stored: int, collection: str = "texts") -> None:
    """Nothing is outstanding, and the ledger says of every request what its last final event says."""
    assert not installation.outstanding()
    assert installation.store.count(collection) == stored
    ledger = installation.ledger()
    for task_id, states in installation.final_events().items():
        assert ledger[task_id].state.value == states[-1], task_id
