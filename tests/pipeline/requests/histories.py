"""Histories of messages without a broker, for trying many of them: the log, who reads it, and what the rows must be.

From `RequestStream` on it is the product's own code; the log, the transaction that commits offsets and the faults are
simple stand-ins. `expected_rows` is the reference: what the store has to hold follows from the messages alone.
"""

import json
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

from tests.pipeline.requests.installation import DIMENSION, HashEncoder, ledger_rows, stored_rows
from vectorize_pipelines.core.days import Days
from vectorize_pipelines.core.items import Modality, content_hash
from vectorize_pipelines.core.records import record_id
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.kafka.sources import MessageSource, Polled
from vectorize_pipelines.messaging.outcomes import Outcomes
from vectorize_pipelines.pipeline.requests.context import RunContext
from vectorize_pipelines.pipeline.requests.report import Report, TopicReport
from vectorize_pipelines.pipeline.requests.stream import RequestStream
from vectorize_pipelines.pipeline.spill import configured_outage
from vectorize_pipelines.pipeline.stop_policy import StopPolicy
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.versions import SourceVersions
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore

MODALITY = Modality.TEXT
NORMAL, PRIORITY = "vectorize.text", "vectorize.text.priority"
DAY_MS = 86_400_000
#: Midnight of the first day that histories lie in.
FIRST_DAY = date(2024, 3, 1)
FIRST_MS = round(datetime(2024, 3, 1, tzinfo=UTC).timestamp() * 1000)
#: A collection that was made for another model: requests for it fail.
TAKEN = "taken"


class CutOffError(Exception):
    """The run ends here, as a kill would end it."""


class Faults:
    """Cuts a run off before its step number `at`; None: never."""

    def __init__(self, at: int | None = None):
        self._left = at

    def step(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise CutOffError

    def around(self, target: Any, *methods: str) -> Any:
        """`target` with a step before and after each of these methods."""
        return _Stepping(target, frozenset(methods), self)


class _Stepping:
    def __init__(self, target: Any, methods: frozenset[str], faults: Faults):
        self._target, self._methods, self._faults = target, methods, faults

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if name not in self._methods:
            return value

        def call(*arguments: Any, **options: Any) -> Any:
            self._faults.step()
            result = value(*arguments, **options)
            self._faults.step()
            return result

        return call


@dataclass(frozen=True, slots=True)
class Message:
    """A message as confluent_kafka gives it."""

    place: PartitionId
    number: int
    milliseconds: int
    content: bytes | None
    key_bytes: bytes | None

    def topic(self) -> str:
        return self.place[0]

    def partition(self) -> int:
        return self.place[1]

    def offset(self) -> int:
        return self.number

    def key(self) -> bytes | None:
        return self.key_bytes

    def value(self) -> bytes | None:
        return self.content

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return (1, self.milliseconds)


@dataclass(frozen=True, slots=True)
class Sent:
    """What a sender hands over. `texts` None is a tombstone; `raw` a value that is no request."""

    task_id: str
    lane: str
    partition: int
    day: int
    milliseconds: int
    texts: tuple[str, ...] | None
    collection: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    raw: bytes | None = None

    def value(self) -> bytes | None:
        if self.raw is not None:
            return self.raw
        if self.texts is None:
            return None
        request: dict[str, Any] = {"task_id": self.task_id, "metadata": dict(self.metadata)}
        if self.collection is not None:
            request["collection"] = self.collection
        if len(self.texts) == 1:
            return json.dumps({**request, "task_type": "text_vectorization", "data": self.texts[0]}).encode()
        return json.dumps({**request, "task_type": "batch_vectorization", "data": list(self.texts)}).encode()


@dataclass
class Log:
    """The topics: what was sent, and what has been committed and told in transactions."""

    places: dict[PartitionId, list[Message]] = field(default_factory=dict)
    sent: list[tuple[Message, Sent]] = field(default_factory=list)
    committed: dict[PartitionId, int] = field(default_factory=dict)
    events: list[Any] = field(default_factory=list)
    letters: list[Any] = field(default_factory=list)

    def append(self, sent: Sent) -> None:
        place = (sent.lane, sent.partition)
        messages = self.places.setdefault(place, [])
        milliseconds = FIRST_MS + sent.day * DAY_MS + sent.milliseconds
        message = Message(place, len(messages), milliseconds, sent.value(), sent.task_id.encode())
        messages.append(message)
        self.sent.append((message, sent))

    def send(self, outcomes: Outcomes, group_metadata: object) -> None:
        """The transaction."""
        self.events += outcomes.events
        self.letters += outcomes.dead_letters
        self.committed.update(outcomes.positions)

    def outstanding(self) -> dict[PartitionId, int]:
        """Messages behind the committed offsets."""
        left = {place: len(messages) - self.committed.get(place, 0) for place, messages in self.places.items()}
        return {place: number for place, number in left.items() if number}


class _LogSource(MessageSource):
    """Reads partitions in turns, some messages at a time, as `chance` has it."""

    def __init__(self, log: Log, begin: Mapping[PartitionId, int], chance: random.Random, *, commits: bool, most: int):
        self._log, self._chance, self._commits, self._most = log, chance, commits, most
        self._at = {place: begin.get(place, 0) for place in log.places}
        self._ends = {place: len(messages) for place, messages in log.places.items()}

    def poll(self, most: int) -> Polled:
        messages: list[ReceivedMessage] = []
        positions: dict[PartitionId, int] = {}
        together = min(most, self._chance.randint(1, self._most))
        places = [place for place, at in self._at.items() if at < self._ends[place]]
        self._chance.shuffle(places)
        for place in places:
            at = self._at[place]
            taken = self._log.places[place][at : min(self._ends[place], at + together - len(messages))]
            if taken:
                messages += taken
                self._at[place] = positions[place] = at + len(taken)
        return Polled([m for m in messages if self._wants(m)], positions if self._commits else {})

    def _wants(self, message: ReceivedMessage) -> bool:
        return True

    def at_end(self) -> bool:
        return self._at == self._ends

    def lag(self) -> int:
        return sum(self._ends[place] - at for place, at in self._at.items())

    def close(self) -> None:
        """Nothing to leave."""


class _WindowSource(_LogSource):
    """Of everything, the messages of some days."""

    def __init__(self, log: Log, window: tuple[date, date], chance: random.Random, most: int):
        super().__init__(log, {}, chance, commits=False, most=most)
        self._window = window

    def _wants(self, message: ReceivedMessage) -> bool:
        day = datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC).date()
        return self._window[0] <= day <= self._window[1]


class _Nobody:
    """Takes events that need no transaction, and callbacks."""

    def send(self, events: object) -> None: ...
    def enqueue(self, rows: object) -> None: ...
    def deliver_soon(self) -> None: ...
    def close(self) -> None: ...
    def refresh(self) -> None: ...

    def cancelled(self, task_id: str, timestamp_ms: int) -> bool:
        return False


class World:
    """An installation whose topics are a `Log`."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.log = Log()
        self.store: VectorStore = open_store(settings.store, settings.home)
        self.store.ensure_collection(TAKEN, describe_model(settings.models.text, dimension=4))
        self._runs = 0
        self._counting = threading.Lock()

    def drain(self, chance: random.Random, faults: Faults | None = None, most: int = 4) -> None:
        """Drains what is outstanding. Raises `CutOffError`."""
        source = _LogSource(self.log, self.log.committed, chance, commits=True, most=most)
        self._run(source, faults or Faults(), drains=True)

    def replay(self, window: tuple[date, date], chance: random.Random, faults: Faults | None = None) -> None:
        """Replays days. Raises `CutOffError`."""
        self._run(_WindowSource(self.log, window, chance, 4), faults or Faults(), drains=False)

    def _run(self, source: MessageSource, faults: Faults, *, drains: bool) -> None:
        with self._counting:
            self._runs += 1
            run_id = f"run-{self._runs}"
        resources = ExitStack()
        ledger = RequestLedger.open(self.settings)
        versions = SourceVersions.open(self.settings)
        resources.callback(ledger.close)
        resources.callback(versions.close)
        store = faults.around(self.store, "upsert", "delete")
        stepping = faults.around(ledger, "record")
        nobody: Any = _Nobody()
        report = Report(stepping, MODALITY, run_id, nobody)
        if drains:
            outcomes = faults.around(self.log, "send")
            report = TopicReport(
                stepping,
                MODALITY,
                run_id,
                nobody,
                outcomes=outcomes,
                events=nobody,
                callbacks=nobody,
                group_metadata=None,
            )
        context = RunContext(
            self.settings,
            MODALITY,
            run_id,
            store,
            faults.around(versions, "record", "record_deletions"),
            _lease,
            configured_outage(self.settings),
        )
        stream = RequestStream(
            context,
            source,
            report,
            StopPolicy(0, inf, datetime.max.replace(tzinfo=UTC)),
            lambda: Days(self.settings.partitions.start, datetime.now(UTC).date()),
            resources,
        )
        with stream:
            for _ in written(DirectWriter(self.settings, store), stream):
                pass

    def rows(self) -> dict[tuple[str, str, int], dict[str, Any]]:
        """Every row, by collection, task and index."""
        found = {}
        for collection in self.store.collections():
            for place, row in stored_rows(self.store, collection.name).items():
                found[(collection.name, *place)] = row
        return found

    def without_lineage(self) -> dict[tuple[str, str, int], dict[str, Any]]:
        """`rows` without what tells when and by which run they were made."""
        lineage = ("run_id", "embedded_at", "vector")
        return {
            place: {name: value for name, value in row.items() if name not in lineage}
            for place, row in self.rows().items()
        }

    def ledger(self) -> dict[str, Any]:
        """Every row of the ledger, by request."""
        return ledger_rows(self.settings)


@contextmanager
def _lease(model: str, dimension: int | None) -> Iterator[Encoder]:
    yield HashEncoder(describe_model(model, dimension=dimension))


def expected_rows(log: Log, settings: Settings) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What the store has to hold, without lineage: of each task in each collection the newest message that counts."""
    default = settings.kafka.text_collection
    newest: dict[tuple[str, str], tuple[Message, Sent]] = {}
    deleted: dict[str, tuple[Any, ...]] = {}
    for message, sent in log.sent:
        if sent.raw is not None:
            continue
        if sent.texts is None:
            deleted[sent.task_id] = max(_version(message), deleted.get(sent.task_id, (0,)))
            continue
        if sent.collection == TAKEN:
            continue
        key = (sent.collection or default, sent.task_id)
        if key not in newest or _version(message) > _version(newest[key][0]):
            newest[key] = (message, sent)
    spec = describe_model(settings.models.text, dimension=settings.models.dimension)
    return {
        (collection, task_id, index): _row(collection, message, sent, index, text, spec.fingerprint)
        for (collection, task_id), (message, sent) in newest.items()
        if _version(message) > deleted.get(task_id, (0,))
        for index, text in enumerate(sent.texts or ())
    }


def _version(message: Message) -> tuple[Any, ...]:
    return (message.milliseconds, *message.place, message.number)


def _row(collection: str, message: Message, sent: Sent, index: int, text: str, model: str) -> dict[str, Any]:
    occurred_at = datetime.fromtimestamp(message.milliseconds / 1000, UTC)
    return {
        "id": record_id(collection, sent.task_id, index),
        "source_id": sent.task_id,
        "item_index": index,
        "modality": "text",
        "text": text,
        "uri": f"kafka://{message.topic()}/{message.partition()}/{message.offset()}",
        "page": None,
        "start": 0,
        "end": len(text),
        "content_hash": content_hash(text),
        "model": model,
        "occurred_at": occurred_at,
        "partition": occurred_at.date().isoformat(),
        "metadata": json.dumps(dict(sent.metadata), sort_keys=True),
    }


def day(number: int) -> date:
    """A day of the histories."""
    return FIRST_DAY + timedelta(days=number)


def settings_in(folder: str) -> Settings:
    return load_settings(
        {},
        home=Path(folder),
        models={"dimension": DIMENSION},
        cache={"enabled": "off"},
        ledger={"url": f"sqlite:///{folder}/ledger.db"},
    )
