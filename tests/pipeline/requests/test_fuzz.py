"""Whatever bytes lie in a topic, no run ends by them: each is a dead letter, and its neighbours do not notice."""

import base64
import json
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.requests.histories import NORMAL, Message, World, settings_in
from tests.pipeline.requests.installation import FINAL, Installation, batch_request, text_request
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.kafka.clients import producer
from vectorize_pipelines.kafka.topics import create_topics
from vectorize_pipelines.messaging.messages import InvalidMessageError, Origin, decode

MESSAGES = 3_000
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 2**70, 1e308, "", " ", "\x00", "\u202e", "a" * 600, [], [[]], {}, {"a": {"b": []}}, "😀", "normal",
)  # fmt: skip
ODD_BYTES = (
    b"", b"null", b"NaN", b"[" * 1000, b'{"a":' * 500, b"\xef\xbb\xbf{}", b"\xff\xfe\x00", b'"\\ud800"', b"1" * 5000,
    b'{"task_id":"a","task_id":"b","task_type":"text_vectorization","data":"x"}',
    b'{"task_type":"text_vectorization","data":"\\ud800"}', b'{"task_type":"text_vectorization","data":"a\\u0000b"}',
)  # fmt: skip
#: Few, as each that is valid makes a collection or is looked for on the disk.
ODD_NAMES = ("", "../../etc", "a" * 300, "~nobody-of-this-name/x", "a\x00b", "-x", "é", "sentence-transformers/../x")
FIELDS = ("task_type", "data", "task_id", "version", "priority", "batch_size", "metadata", "callback_url", "unknown")


def mutated(chance: random.Random, number: int) -> bytes:
    """Some bytes that are no request, or an odd one, or by chance a good one."""
    kind = chance.randrange(5)
    if kind == 0:
        return chance.randbytes(chance.randrange(1, 200))
    if kind == 1:
        return chance.choice(ODD_BYTES[1:])
    request = text_request(f"m{number}", f"mutated {number}")
    if chance.random() < 0.3:
        request = batch_request(f"m{number}", [f"mutated {number}", chance.choice(ODD_VALUES)])
    if kind == 2:
        request[chance.choice(FIELDS)] = chance.choice(ODD_VALUES)
        return json.dumps(request).encode()
    if kind == 3:
        request[chance.choice(("model_name", "collection"))] = chance.choice(ODD_NAMES)
        return json.dumps(request).encode()
    value = bytearray(json.dumps(request).encode())
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(value))
        value[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    return bytes(value)


def is_refused(message: Any, modality: Modality) -> bool:
    try:
        decode(message.value(), message.key(), Origin(message.topic(), 0, message.offset(), 0), modality)
    except InvalidMessageError:
        return True
    return False


def letter_places(installation: Installation) -> Counter[tuple[str, int, int]]:
    """Where the messages in the dead letters come from; each with its reason."""
    places: Counter[tuple[str, int, int]] = Counter()
    for letter in installation.letters():
        headers = {name: (value or b"").decode() for name, value in letter.headers()}
        assert headers["__connect.errors.exception.message"]
        assert headers["vectorize.error.class"]
        names = ("topic", "partition", "offset")
        topic, partition, offset = (headers[f"__connect.errors.{name}"] for name in names)
        places[topic, int(partition), int(offset)] += 1
    return places


def test_raw_and_mutated_messages(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vectorize_pipelines.encoders.models.locate._download", _not_on_the_hub)
    chance = random.Random(5)
    create_topics(installation.settings.kafka)
    client = producer(installation.settings.kafka)
    topic = installation.names.requests(installation.modality)
    for number in range(MESSAGES):
        key = chance.choice([None, b"", b"\xff", f"m{number}".encode()])
        client.produce(topic, mutated(chance, number), key)
        if number % 10 == 0:
            good = text_request(f"good{number}", f"neighbour {number}")
            client.produce(topic, json.dumps(good).encode(), f"good{number}".encode())
        client.poll(0)
    assert client.flush(60) == 0
    installation.drain()

    assert not installation.outstanding()
    letters = letter_places(installation)
    assert set(letters.values()) == {1}
    messages = installation.read(topic)
    refused = {place(message) for message in messages if is_refused(message, installation.modality)}
    assert refused <= set(letters)
    assert len(refused) > MESSAGES / 2
    finals = Counter(event["task_id"] for event in installation.events() if event["status"] in FINAL)
    good = {f"good{number}": f"neighbour {number}" for number in range(0, MESSAGES, 10)}
    assert all(finals[task_id] == 1 for task_id in good)
    texts = installation.texts()
    assert {name: texts[name, 0] for name in good} == good
    completed = sum(event["status"] == "completed" for event in installation.events())
    tombstones = sum(message.value() is None for message in messages)
    assert completed + sum(letters.values()) + tombstones == len(messages), "every message came to one end"


def _not_on_the_hub(name: str, repository: str) -> Path:
    from vectorize_pipelines.errors import UnknownModelError

    raise UnknownModelError(f"no model {name!r}")


def place(message: Any) -> tuple[str, int, int]:
    return (message.topic(), message.partition(), message.offset())


def test_documents_and_addresses_that_are_not_to_be_had(installation: Installation) -> None:
    installation.modality = Modality.DOCUMENT
    chance = random.Random(6)

    def document(number: int, data: Any) -> dict[str, Any]:
        return {"task_id": f"d{number}", "task_type": "document_vectorization", "data": data}

    binary = ("application/pdf", "application/vnd.apache.parquet")
    bad: list[Any] = [
        {"content": base64.b64encode(chance.randbytes(500)).decode(), "content_type": kind} for kind in binary * 10
    ]
    bad += ["file:///etc/passwd", "http://127.0.0.1:9/x", "http://169.254.169.254/latest/meta-data", "/etc/passwd"]
    bad += ["gopher://x/y", "http://[::1]/", "data:text/plain;base64,!!!", "http://0x7f000001/", "\\\\host\\share", "x"]
    installation.send(*[document(number, data) for number, data in enumerate(bad)])
    installation.send(*[document(1000 + number, {"content": f"A good document {number}."}) for number in range(20)])
    installation.drain()
    assert len(letter_places(installation)) == len(bad)
    assert {name for name, _ in installation.texts("documents")} == {f"d{1000 + number}" for number in range(20)}
    assert not installation.outstanding()


def test_a_document_that_fails_replaces_nothing_in_whatever_batch_it_comes(installation: Installation) -> None:
    installation.modality = Modality.DOCUMENT
    good = {"task_id": "d", "task_type": "document_vectorization", "data": {"content": "A good document."}}
    bad = {**good, "data": "file:///etc/passwd"}
    installation.send(good, bad, partition=0)
    installation.drain()
    assert installation.texts("documents") == {("d", 0): "A good document."}
    assert installation.final_events() == {"d": ["completed", "failed"]}
    installation.replay()
    assert installation.texts("documents") == {("d", 0): "A good document."}


@pytest.mark.parametrize("milliseconds", [-(2**62), -1, 0, 253_402_300_800_000, 2**62])
def test_timestamps_that_are_no_times(tmp_path: Path, milliseconds: int) -> None:
    world = World(settings_in(str(tmp_path)))
    for number, at in enumerate((milliseconds, 1_700_000_000_000)):
        value = json.dumps(text_request(f"t{number}", "a boat")).encode()
        message = Message((NORMAL, 0), number, at, value, None)
        world.log.places.setdefault((NORMAL, 0), []).append(message)
    before = datetime.now(UTC).date().isoformat()
    world.drain(random.Random(0))
    after = datetime.now(UTC).date().isoformat()
    rows = world.rows()
    assert {name for _, name, _ in rows} == {"t0", "t1"}
    days = {name: row["partition"] for (_, name, _), row in rows.items()}
    assert days["t0"] in (("2020-01-01",) if milliseconds <= 0 else (before, after))
    assert days["t1"] == "2023-11-14"
