"""`vectorize drain`: the requests that wait, in the foreground."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.cli.conftest import COMMAND, Vectorize
from tests.orchestration.requests_in_kafka import rows, send, text
from tests.orchestration.servers import until
from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.settings import KafkaSettings


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


def _jobs(home: Path) -> set[str]:
    """Of the runs that the installation knows."""
    if not (home / "dagster").exists():
        return set()
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        return {run.job_name for run in instance.get_runs()}


def test_what_waits_is_embedded_once(vectorize: Vectorize, kafka_settings: KafkaSettings) -> None:
    send(kafka_settings, [*(text(f"note-{n}", f"note {n} about boats") for n in range(20)), b"no JSON"])
    done = vectorize("drain", "text", "--once", "--json")
    assert done.code == 6, done.err
    assert (done.json["messages"], done.json["dead_letters"], done.json["lag"]) == (21, 1, 0)
    assert (done.json["status"], done.json["encoded"], done.json["shard"]) == ("succeeded", 20, "0/1")
    assert [failure["error"] for failure in done.json["failures"]] == ["InvalidMessageError"]
    assert count() == 20


def test_what_the_user_has_to_mend_is_said(vectorize: Vectorize, monkeypatch: pytest.MonkeyPatch) -> None:
    done = vectorize("drain", "text", "--once")
    assert done.code == 2
    assert "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS" in done.err
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", "localhost:1")
    assert vectorize("drain", "text", "--shard", "4/4").code == 2


def test_an_interrupted_drain_loses_nothing(vectorize: Vectorize, kafka_settings: KafkaSettings, home: Path) -> None:
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
    done = vectorize("drain", "text", "--once", "--json")
    assert done.code == 0, done.err
    assert count() == 40


def test_a_drain_that_no_broker_answers_can_be_interrupted(
    vectorize: Vectorize, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", "localhost:1")
    monkeypatch.setenv("VECTORIZE_KAFKA__REQUEST_SECONDS", "1")
    with subprocess.Popen([*COMMAND, "drain", "text", "--once"], stderr=subprocess.PIPE, text=True) as process:
        try:
            until("the run", lambda: "embed_text" in _jobs(home), 120)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode != 0
    assert "the run ended before it began: interrupted" in said
    assert said.count("Connection refused") < 5  # librdkafka says it at each of dozens of tries
