"""What of a file is not embedded, or was guessed in reading it: told by every run for as long as it is so."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Done, Vectorize
from tests.documents import noticing
from tests.messaging.brokers import read
from tests.messaging.requests_in_kafka import rows, send
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.pipeline.files import documents
from vectorize_pipelines.pipeline.requests import reader
from vectorize_pipelines.settings import KafkaSettings

PAGES = "2 of 7 pages have no text (3, 5)"
ENCODING = "the encoding windows-1251, from its letters"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    noticing.use(monkeypatch, documents)
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "whole.md").write_text("The harbour master counts the boats.")
    (folder / "partly.md").write_text(f"OMITTED {PAGES}\n\nThe keeper feeds the hens at six.")
    (folder / "guessed.txt").write_text(f"ASSUMED {ENCODING}\n\nThe cook bakes bread on Fridays.")
    return folder


def _notices(folder: Path) -> list[dict[str, str]]:
    told = (("partly.md", "omitted", PAGES), ("guessed.txt", "assumed", ENCODING))
    return [
        {"source": str(folder / name), "kind": kind, "what": what, "remedy": noticing.REMEDY}
        for name, kind, what in told
    ]


def _told(done: Done) -> tuple[Any, ...]:
    return (done.code, done.json["incomplete"], done.json["assumed"], done.json["failed"], done.json["notices"])


def test_what_is_missing_is_told_by_every_run_until_it_is_there(vectorize_here: Vectorize, folder: Path) -> None:
    ingest = ("ingest", folder, "--collection", "notes", "--json")
    incomplete = (6, 1, 1, 0, _notices(folder))
    first = vectorize_here(*ingest)
    assert _told(first) == incomplete
    assert f"omitted: {folder / 'partly.md'}: {PAGES}; {noticing.REMEDY}\n" in first.err
    assert f"assumed: {folder / 'guessed.txt'}: {ENCODING}; {noticing.REMEDY}\n" in first.err

    again = vectorize_here(*ingest)
    assert (again.json["encoded"], _told(again)) == (0, incomplete), "unchanged files are not read"
    assert f"omitted: {folder / 'partly.md'}: {PAGES}" in again.err
    assert _told(vectorize_here(*ingest, "--reconcile")) == incomplete
    os.utime(folder / "partly.md", (1_700_000_000, 1_700_000_000))
    moved = vectorize_here(*ingest)
    assert (moved.json["encoded"], _told(moved)) == (0, incomplete), "the same content under another time"
    parts = [vectorize_here(*ingest, "--shard", f"{index}/2") for index in range(2)]
    assert sorted(part.code for part in parts) in ([0, 6], [6, 6])
    assert sorted(str(each) for part in parts for each in part.json["notices"]) == sorted(map(str, _notices(folder)))

    (folder / "partly.md").write_text("The keeper feeds the hens at six.")
    whole = vectorize_here(*ingest)
    assert _told(whole) == (0, 0, 1, 0, _notices(folder)[1:]), "a guess alone is no failure"
    (folder / "guessed.txt").unlink()
    assert _told(vectorize_here(*ingest)) == (0, 0, 0, 0, [])


def test_hits_say_what_their_document_lacks(vectorize_here: Vectorize, folder: Path) -> None:
    (folder / "own.jsonl").write_text('OMITTED a row\n{"text": "A ferry leaves at noon.", "omitted": "by the user"}\n')
    printed = vectorize_here("ingest", folder, "--collection", "notes")
    assert printed.code == 6
    assert "4 documents, 0 of them failed, 2 incomplete, 1 read by an assumption; 4 chunks" in printed.out
    hits = vectorize_here("search", "who feeds the hens", "--collection", "notes", "--json").json
    said = {Path(hit["source_id"]).name: hit["metadata"] for hit in hits}
    assert said["partly.md"]["omitted"] == [PAGES]
    assert said["guessed.txt"]["assumed"] == [ENCODING]
    assert not {"omitted", "assumed"} & set(said["whole.md"])
    assert said["own.jsonl"]["omitted"] == "by the user"
    search = ("search", "who feeds the hens", "--collection", "notes", "--json", "--filter")
    lacking = vectorize_here(*search, "omitted exists").json
    assert {Path(hit["source_id"]).name for hit in lacking} == {"partly.md", "own.jsonl"}


@pytest.mark.slow
def test_documents_of_requests_say_it_in_their_results(
    vectorize_here: Vectorize, kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticing.use(monkeypatch, reader)
    partly = {"content": f"OMITTED {PAGES}\n\nThe keeper feeds the hens at six."}
    one = {"task_id": "one", "task_type": "document_vectorization", "data": partly}
    several = {"task_id": "several", "task_type": "batch_vectorization", "data": [{"content": "whole"}, partly]}
    send(kafka_settings, [one, several], modality=Modality.DOCUMENT)
    done = vectorize_here("drain", "document", "--once", "--json")
    assert (done.code, done.json["incomplete"], done.json["dead_letters"]) == (0, 2, 0), done.err
    assert f"omitted: one: {PAGES}" in done.err
    messages = read(kafka_settings, TopicNames(kafka_settings.topic_prefix).results)
    events = {event["task_id"]: event for event in (json.loads(message.value()) for message in messages)}
    warning = {"kind": "omitted", "what": PAGES, "remedy": noticing.REMEDY}
    assert events["one"]["warnings"] == [warning]
    assert events["several"]["warnings"] == [{**warning, "what": f"data[1]: {PAGES}"}]
    assert vectorize_here("status", "one", "--json").json["warnings"] == [warning]
    said = {(row["source_id"], row["item_index"]): json.loads(row["metadata"]) for row in rows("documents")}
    assert said["one", 0]["omitted"] == said["several", 1]["omitted"] == [PAGES]
    assert "omitted" not in said["several", 0]
