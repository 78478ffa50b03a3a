"""Mixed traffic for one installation, and the count afterwards: is everything there, each once, as it was sent?"""

import json
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.pipeline.requests.installation import FINAL, Installation, batch_request, text_request
from vectorize_pipelines.kafka.clients import producer
from vectorize_pipelines.kafka.topics import create_topics

#: Kinds of message, and how many of a hundred are of each.
SHARES = {"text": 70, "batch": 10, "duplicate": 8, "version": 5, "tombstone": 2, "poison": 5}
#: The broker may be just started again.
DELIVERY_SECONDS = 120.0
WORDS = ("boat", "sea", "harbour", "wind", "rain", "sail", "tide", "gull")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the count."""

    name: str
    expected: int
    found: int
    wrong: int

    def __str__(self) -> str:
        verdict = "as it should be" if not self.wrong and self.expected == self.found else f"{self.wrong} WRONG"
        return f"{self.name:<44}{self.expected:>10,}{self.found:>10,}  {verdict}"

    @property
    def is_right(self) -> bool:
        return not self.wrong and self.expected == self.found


@dataclass(slots=True)
class _Message:
    kind: str
    task_id: str
    value: bytes | None
    texts: tuple[str, ...]
    at: int
    place: tuple[str, int, int] = ("", 0, 0)

    @property
    def version(self) -> tuple[Any, ...]:
        return (self.at, *self.place)


@dataclass
class Traffic:
    """Sends messages of every kind on both lanes, each kind in its share, and knows what has to come of them."""

    installation: Installation
    seed: int
    messages: list[_Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._began = round(time.time() * 1000) - 10_000_000
        create_topics(self.installation.settings.kafka)
        self._producer = producer(self.installation.settings.kafka)

    def send(self, number: int) -> None:
        """Sends so many messages, one in ten on the priority lane."""
        errors: list[object] = []
        for _ in range(number):
            message = self._next()
            self.messages.append(message)
            lane = self.installation.names.lane(self.installation.modality, int(self._random.random() < 0.1))

            def delivered(error: object, sent: Any, message: _Message = message) -> None:
                if error is not None:
                    errors.append(error)
                message.place = (sent.topic(), sent.partition(), sent.offset())

            self._producer.produce(
                lane, message.value, message.task_id.encode(), timestamp=message.at, on_delivery=delivered
            )
            self._producer.poll(0)
        assert self._producer.flush(DELIVERY_SECONDS) == 0
        assert not errors, errors[:3]

    def _next(self) -> _Message:
        number, chance = len(self.messages), self._random
        kind = chance.choices(list(SHARES), list(SHARES.values()))[0]
        earlier = chance.choice(self.messages) if self.messages else None
        at = self._began + number
        if kind == "poison" or earlier is None or earlier.kind == "poison":
            if kind == "poison":
                value = chance.choice([b"{", b"\xff\x00", b'{"task_type": "text_vectorization"}', b"[]"])
                return _Message("poison", f"poison-{number}", value, (), at)
            kind = "text" if kind != "batch" else kind
        if kind == "duplicate" and earlier is not None:
            return _Message(kind, earlier.task_id, earlier.value, earlier.texts, at)
        if kind == "tombstone" and earlier is not None:
            return _Message(kind, earlier.task_id, None, (), at)
        texts = tuple(f"{chance.choice(WORDS)} {number} {n}" for n in range(chance.randint(2, 5)))
        task_id = earlier.task_id if kind == "version" and earlier is not None else f"task-{number}"
        if kind == "batch" or (kind == "version" and chance.random() < 0.5):
            return _Message(kind, task_id, json.dumps(batch_request(task_id, texts)).encode(), texts, at)
        return _Message(kind, task_id, json.dumps(text_request(task_id, texts[0])).encode(), texts[:1], at)

    # The count

    def check(self) -> list[Check]:
        """Holds store, results, dead letters, ledger and offsets against what was sent."""
        return [self._rows(), self._letters(), self._results(), self._ledger(), self._offsets()]

    def _rows(self) -> Check:
        newest: dict[str, _Message] = {}
        for message in self._valid():
            other = newest.setdefault(message.task_id, message)
            if message.version > other.version:
                newest[message.task_id] = message
        expected = {(name, n): text for name, each in newest.items() for n, text in enumerate(each.texts)}
        found = self.installation.texts()  # which sees to it that each is there once
        return _check("rows in the store, each once", expected, found)

    def _letters(self) -> Check:
        expected = Counter(message.place for message in self.messages if message.kind == "poison")
        found: Counter[tuple[str, int, int]] = Counter()
        for letter in self.installation.letters():
            headers = {name: (value or b"").decode() for name, value in letter.headers()}
            prefix = "__connect.errors."
            place = (headers[f"{prefix}topic"], int(headers[f"{prefix}partition"]), int(headers[f"{prefix}offset"]))
            found[place] += 1
        return _check("dead letters under read_committed, each once", expected, found)

    def _results(self) -> Check:
        expected = Counter(
            (message.task_id, "failed" if message.kind == "poison" else "completed")
            for message in self.messages
            if message.value is not None
        )
        found = Counter(
            (event["task_id"], event["status"]) for event in self.installation.events() if event["status"] in FINAL
        )
        return _check("final results under read_committed, each once", expected, found)

    def _ledger(self) -> Check:
        expected = {
            message.task_id: "failed" if message.kind == "poison" else "completed"
            for message in self.messages
            if message.value is not None
        }
        found = {name: row.state.value for name, row in self.installation.ledger().items()}
        return _check("requests in the ledger, in their final state", expected, found)

    def _offsets(self) -> Check:
        places = {message.place[:2] for message in self.messages}
        outstanding = self.installation.outstanding()
        return Check("partitions whose offset is their end", len(places), len(places - set(outstanding)), 0)

    def _valid(self) -> list[_Message]:
        return [message for message in self.messages if message.kind != "poison"]


def _check(name: str, expected: Mapping[Any, Any], found: Mapping[Any, Any]) -> Check:
    """Counts what is missing, what is too much and what is not as it should be."""
    wrong = sum(1 for key in {*expected, *found} if expected.get(key) != found.get(key))
    totals = [sum(each.values()) if isinstance(each, Counter) else len(each) for each in (expected, found)]
    return Check(name, totals[0], totals[1], wrong)
