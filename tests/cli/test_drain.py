"""`vectorize drain`: the requests that wait, in the foreground."""

import json
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import COMMAND, Vectorize
from tests.encoders.tiny_clips import build_clip
from tests.messaging.requests_in_kafka import rows, send, text
from tests.servers.dagster import until
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.kafka.clients import admin
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.runs.tags import WIND_DOWN_TAG
from vectorize_pipelines.settings import KafkaSettings

pytestmark = pytest.mark.slow

#: Below VECTORIZE_HOME.
RUNS = "dagster/history/runs.db"


def count() -> int:
    try:
        return len(rows("texts"))
    except CollectionNotFoundError:
        return 0


@pytest.fixture(autouse=True)
def _interrupts_are_heeded() -> Iterator[None]:
    """A shell starts jobs in the background with Ctrl-C's signal ignored, and whatever they start inherits that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_what_waits_is_embedded_once(vectorize_here: Vectorize, kafka_settings: KafkaSettings) -> None:
    send(kafka_settings, [*(text(f"note-{n}", f"note {n} about boats") for n in range(20)), b"no JSON"])
    done = vectorize_here("drain", "text", "--once", "--json")
    assert done.code == 6, done.err
    assert (done.json["messages"], done.json["dead_letters"], done.json["lag"]) == (21, 1, 0)
    assert (done.json["status"], done.json["encoded"], done.json["shard"]) == ("succeeded", 20, "0/1")
    assert [failure["error"] for failure in done.json["failures"]] == ["InvalidMessageError"]
    assert count() == 20


def test_images_and_documents_are_fetched_and_found(
    vectorize_here: Vectorize, kafka_settings: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "contents"
    folder.mkdir()
    monkeypatch.setenv("VECTORIZE_URIS__ALLOWED_ROOTS", json.dumps([str(folder)]))
    monkeypatch.setenv("VECTORIZE_MODELS__IMAGE", str(build_clip(tmp_path / "clip")))
    for name, colour in (("red", "#f00"), ("blue", "#00f")):
        Image.new("RGB", (64, 48), colour).save(folder / f"{name}.png")
    assert vectorize_here("topics", "create").code == 0
    (folder / "boats.md").write_text("# Harbours\n\nA boat lies in the harbour at night.\n\n# Fish\n\nHerring.\n")
    assert vectorize_here("submit", "--image", folder / "red.png", "--image", folder / "blue.png", "--batch").code == 0
    images = vectorize_here("drain", "image", "--once", "--json")
    assert (images.code, images.json["encoded"]) == (0, 2), images.err
    (hit,) = vectorize_here(
        "search", "--image", folder / "red.png", "--collection", "images", "--limit", "1", "--json"
    ).json
    assert hit["uri"] == str(folder / "red.png")

    monkeypatch.chdir(folder)
    files = ["boats.md", folder / "missing.md", tmp_path / "elsewhere.md"]
    assert vectorize_here("submit", *(part for file in files for part in ("--document", file))).code == 0
    documents = vectorize_here("drain", "document", "--once", "--json")
    assert documents.code == 6, documents.err
    assert sorted(each["error"] for each in documents.json["failures"]) == ["MissingContentError", "RefusedUriError"]
    (hit,) = vectorize_here("search", "boat in a harbour", "--collection", "documents", "--limit", "1", "--json").json
    assert hit["uri"] == str(folder / "boats.md")
    assert "A boat lies in the harbour" in hit["text"]


def test_what_the_user_has_to_mend_is_said(vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch) -> None:
    done = vectorize_here("drain", "text", "--once")
    assert done.code == 2
    assert "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS" in done.err
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", "localhost:1")
    assert vectorize_here("drain", "text", "--shard", "4/4").code == 2


def test_an_interrupted_drain_loses_nothing(
    vectorize_here: Vectorize, kafka_settings: KafkaSettings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTORIZE_KAFKA__DRAIN__IDLE_SECONDS", "120")  # only the signal ends it
    send(kafka_settings, [text(f"note-{n}", f"note {n} about boats") for n in range(20)])
    with subprocess.Popen([*COMMAND, "drain", "text"], stderr=subprocess.PIPE, text=True) as process:
        try:
            until("the first rows", count, 120)
            send(kafka_settings, [text(f"late-{n}", f"late note {n}") for n in range(20)])
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert "ended: interrupted" in said
    done = vectorize_here("drain", "text", "--once", "--json")
    assert done.code == 0, done.err
    assert count() == 40


def test_a_drain_that_no_broker_answers_can_be_interrupted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", "localhost:1")
    monkeypatch.setenv("VECTORIZE_KAFKA__REQUEST_SECONDS", "1")
    with subprocess.Popen([*COMMAND, "drain", "text", "--once"], stderr=subprocess.PIPE, text=True) as process:
        try:
            until("the run", lambda: _body(home) is not None, 120)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert "the run ended before it began: interrupted" in said
    assert said.count("Connection refused") < 5  # librdkafka says it at each of dozens of tries


def test_a_drain_is_told_of_the_interruption_until_it_ends(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster writes a run as a whole: a status written at the same moment takes the tag away that tells the run."""
    monkeypatch.setenv("VECTORIZE_KAFKA__REQUEST_SECONDS", "10")
    with socket.create_server(("127.0.0.1", 0)) as mute_broker:
        mute_broker.settimeout(120)
        monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", f"127.0.0.1:{mute_broker.getsockname()[1]}")
        with subprocess.Popen([*COMMAND, "drain", "text", "--once"], stderr=subprocess.PIPE, text=True) as process:
            try:
                connection, _ = mute_broker.accept()  # from now on the run waits for an answer
                with connection:
                    before = _body(home)
                    process.send_signal(signal.SIGINT)
                    until("the tag", lambda: WIND_DOWN_TAG in (_body(home) or ""), 60)
                    with closing(_runs(home)) as runs, runs:
                        runs.execute("UPDATE runs SET run_body = ?", (before,))
                    until("the tag once more", lambda: WIND_DOWN_TAG in (_body(home) or ""), 60)
                    process.send_signal(signal.SIGINT)  # one more changes nothing
                _, said = process.communicate(timeout=60)
            finally:
                process.kill()
    assert process.returncode == 130, said
    assert "the run ended before it began: interrupted" in said


def _body(home: Path) -> str | None:
    """What Dagster keeps of the only run, once there is one.

    Dagster itself is not asked: two that open an installation while it is being made spoil it.
    """
    if not (home / RUNS).exists():
        return None
    with closing(_runs(home)) as runs:
        if not runs.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchall():
            return None
        row = runs.execute("SELECT run_body FROM runs").fetchone()
    return None if row is None else str(row[0])


def _runs(home: Path) -> sqlite3.Connection:
    return sqlite3.connect(home / RUNS, timeout=60)


def test_messages_that_the_broker_deleted_unread_are_told_with_their_place(
    vectorize_here: Vectorize, kafka_settings: KafkaSettings
) -> None:
    from confluent_kafka import TopicPartition

    topic = TopicNames(kafka_settings.topic_prefix).requests(Modality.TEXT)
    send(kafka_settings, [text("note-0", "note 0")], partition=0)
    assert vectorize_here("drain", "text", "--once").code == 0
    send(kafka_settings, [text(f"note-{n}", f"note {n}") for n in range(1, 11)], partition=0)
    client = admin(kafka_settings)
    client.delete_records([TopicPartition(topic, 0, 8)])[TopicPartition(topic, 0)].result(30)
    done = vectorize_here("drain", "text", "--once")
    assert done.code == 0, done.err
    place = f"{topic}, partition 0, offsets 1 to 7"
    assert "7 messages were deleted by the broker before they were read" in done.out
    assert place in done.out
    assert place in done.err
    again = vectorize_here("drain", "text", "--once", "--json")
    assert (again.json["lost_unread"], again.json["lost_unread_offsets"]) == (0, [])
    assert count() == 4
