"""The command line from outside: what it prints, where, and with which exit code."""

import csv
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.commands import Vectorize
from vectorize_pipelines.core.records import RECORD_FIELDS
from vectorize_pipelines.settings import PROJECT_ROOT, Settings

EXAMPLES = PROJECT_ROOT / "examples"
INGEST_KEYS = {
    *("run_id", "status", "collection", "path", "seconds", "documents", "chunks", "encoded", "skipped", "deleted"),
    *("cache_hits", "deduplicated", "failed", "incomplete", "assumed", "truncated", "tokens"),
    *("left_out", "other_kinds", "days", "failures", "notices", "errors"),
}


@pytest.mark.slow
def test_the_example_corpus_answers_its_questions(vectorize_here: Vectorize) -> None:
    done = vectorize_here("ingest", EXAMPLES / "corpus", "--json")
    assert done.code == 0, done.err
    files = [file for file in (EXAMPLES / "corpus").rglob("*") if file.is_file()]
    assert (done.json["status"], done.json["documents"], done.json["failed"]) == ("succeeded", len(files), 0)
    assert done.json["encoded"] == done.json["chunks"] > 100

    (collection,) = vectorize_here("collections", "--json").json
    assert set(collection) == {"name", "physical", "store", "location", "model", "dimension", "rows"}
    assert collection["rows"] == done.json["chunks"]
    assert collection["physical"] == "corpus__all-minilm-l6-v2-384"

    _questions_find_their_documents()

    hits = vectorize_here("search", "how do I treat someone with hypothermia", "--limit", 3, "--json").json
    assert [set(hit) for hit in hits] == [{"score", *RECORD_FIELDS}] * 3
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert hits[0]["source_id"].endswith("emergency-handbook.pdf")
    assert hits[0]["page"] >= 1
    filtered = vectorize_here("search", "火灾", "--filter", "language=zh", "--json").json
    assert filtered
    assert {hit["metadata"]["language"] for hit in filtered} == {"zh"}
    either = '(language in (zh, de) or language = "en") and not language = de and page >= 1'
    expressed = vectorize_here("search", "火灾", "--filter", either, "--filter", "language != zh", "--json").json
    assert {(hit["metadata"]["language"], hit["page"] >= 1) for hit in expressed} == {("en", True)}
    printed = vectorize_here("search", "hypothermia", "--limit", 1)
    assert "emergency-handbook.pdf, page" in printed.out

    doctor = {finding["name"]: finding["status"] for finding in vectorize_here("doctor", "--json").json}
    assert doctor["store"] == doctor["corpus"] == doctor["model"] == "ok"
    assert doctor["kafka"] == "off"


def _questions_find_their_documents() -> None:
    from vectorize_pipelines.encoders import load_encoder
    from vectorize_pipelines.settings import load_settings
    from vectorize_pipelines.stores import open_store

    settings = load_settings()
    store = open_store(settings.store, settings.home)
    encoder = load_encoder(settings.models.text, cache_directory=settings.home / "encoders")
    with (EXAMPLES / "queries.tsv").open(encoding="utf-8") as lines:
        for question, document, phrase in csv.reader(lines, delimiter="\t"):
            hits = store.search("corpus", encoder.encode([question], "query")[0], 3).to_pylist()
            assert hits[0]["source_id"].endswith(document), question
            assert any(phrase in " ".join(hit["text"].split()) for hit in hits), question


@pytest.mark.slow
def test_nothing_twice_and_what_is_gone_is_gone(vectorize_here: Vectorize, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("The keeper feeds the hens at six.")
    (folder / "b.md").write_text("The cook bakes bread on Fridays.")
    (folder / "bad.docx").write_bytes(b"PK\x03\x04 not really")
    first = vectorize_here("ingest", folder, "--collection", "notes", "--json")
    assert first.code == 6
    assert set(first.json) == INGEST_KEYS
    assert (first.json["encoded"], first.json["failed"]) == (2, 1)
    (failure,) = first.json["failures"]
    assert failure["source"].endswith("bad.docx")
    assert failure["error"] == "CorruptDocumentError"
    (folder / "a.md").unlink()
    second = vectorize_here("ingest", folder, "--collection", "notes", "--json")
    assert (second.json["encoded"], second.json["deleted"], second.json["failed"]) == (0, 1, 1)
    hits = vectorize_here("search", "who feeds the hens", "--collection", "notes", "--json").json
    assert [os.path.basename(hit["source_id"]) for hit in hits] == ["b.md"]  # noqa: PTH119


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "said"),
    [
        (("ingest", "/nowhere"), {}, 3, "/nowhere: No such file or directory"),
        (("ingest", "s4://bucket"), {}, 3, "s4"),
        (("ingest", "/", "--model", "no/such-model"), {"HF_HUB_OFFLINE": "1"}, 4, "no/such-model"),
        (("search", "x", "--collection", "nowhere"), {}, 5, "nowhere"),
        (("ingest", "/", "--collection", "No Such Name"), {}, 2, "a letter first"),
        (("search", "x", "--filter", "language"), {}, 2, "FIELD=VALUE"),
        (("search", "x", "--filter", "page >= three"), {}, 2, "character 9: 'three' is no value of 'page'"),
        (("search", "x", "--filter", "a=1 and (b=2"), {}, 2, "character 13: expected and, or or ), found the end"),
        (("search", "x", "--limit", "0"), {}, 2, "--limit"),
        (("collections",), {"VECTORIZE_STORE__KIND": "nonesuch"}, 2, "lancedb"),
        (("collections",), {"VECTORIZE_STORE__KNID": "lancedb"}, 2, "did you mean VECTORIZE_STORE__KIND"),
        (("ingest", "/tmp"), {"VECTORIZE_ENCODER__DEVICE": "abacus"}, 2, "abacus"),
        (("nonesuch",), {}, 2, "nonesuch"),
    ],
)
def test_errors_say_what_was_wrong_and_exit_with_their_code(
    vectorize_here: Vectorize,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    code: int,
    said: str,
) -> None:
    (tmp_path / "one.md").write_text("one document")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    existing = {"/": tmp_path, "/tmp": tmp_path}
    done = vectorize_here(*(existing.get(argument, argument) for argument in arguments))
    assert said in done.err
    assert done.code == code, done.err
    assert done.out == ""


def test_a_run_that_failed_has_the_same_keys(vectorize_here: Vectorize) -> None:
    done = vectorize_here("ingest", "/nowhere", "--json")
    assert done.code == 3
    assert set(done.json) == INGEST_KEYS
    assert (done.json["status"], done.json["documents"], done.json["days"]) == ("failed", 0, [])
    assert "/nowhere" in done.json["errors"][0]


@pytest.mark.parametrize("url", ["s3://user:hunter2@bucket/documents", "https://host/documents?token=hunter2"])
def test_a_secret_in_the_path_reaches_no_run(vectorize_here: Vectorize, home: Path, url: str) -> None:
    done = vectorize_here("ingest", url)
    assert done.code == 3
    assert "hunter2" not in done.err + done.out
    assert not [file for file in home.rglob("*") if file.is_file() and b"hunter2" in file.read_bytes()]


@pytest.mark.slow
def test_vectors_of_the_same_content_are_said_to_be_so(vectorize_here: Vectorize, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("one", "two"):
        (tmp_path / "docs" / f"{name}.md").write_text("The keeper feeds the hens at six.")
    assert "1 encoded, 1 skipped (1 of repeated content), 0 deleted" in vectorize_here("ingest", tmp_path / "docs").out
    again = vectorize_here("ingest", tmp_path / "docs", "--collection", "other").out
    assert "0 encoded, 2 skipped (1 from the embedding cache, 1 of repeated content), 0 deleted" in again
    assert "0 encoded, 2 skipped, 0 deleted" in vectorize_here("ingest", tmp_path / "docs").out


@pytest.mark.slow
def test_a_path_has_one_spelling(vectorize_here: Vectorize, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "one.md").write_text("The keeper feeds the hens at six.")
    assert vectorize_here("ingest", tmp_path / "docs", "--json").json["encoded"] == 1
    again = vectorize_here("ingest", f"{tmp_path}/docs/../docs/", "--json").json
    assert (again["path"], again["skipped"], again["documents"]) == (str(tmp_path / "docs"), 1, 1)


@pytest.mark.slow
def test_doctor_fails_where_something_configured_does_not_answer(
    vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("VECTORIZE_CORPUS__PATH", "/nowhere")
    done = vectorize_here("doctor", "--json")
    assert done.code == 1
    status = {finding["name"]: finding["status"] for finding in done.json}
    assert (status["kafka"], status["corpus"], status["store"]) == ("error", "error", "ok")


@pytest.mark.slow
def test_dagster_job_execute_for_one_partition(vectorize_here: Vectorize, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, day in (("old.md", 1), ("new.md", 2)):
        (folder / name).write_text(f"This is the {name} document.")
        at = datetime(2024, 5, day, tzinfo=UTC).timestamp()
        os.utime(folder / name, (at, at))
    assert vectorize_here("doctor").code == 0
    environment = {**os.environ, "VECTORIZE_CORPUS__PATH": str(folder), "DAGSTER_HOME": str(home / "dagster")}
    job = ["-m", "vectorize_pipelines.definitions", "-j", "embed_corpus"]
    tags = ["--tags", '{"dagster/partition": "2024-05-02"}']
    execute = [sys.executable, "-m", "dagster", "job", "execute", *job, *tags]
    subprocess.run(execute, env=environment, check=True, capture_output=True, timeout=200)
    hits = vectorize_here("search", "document", "--json").json
    assert [(os.path.basename(hit["source_id"]), hit["partition"]) for hit in hits] == [("new.md", "2024-05-02")]  # noqa: PTH119


def test_doctor_asks_redis(
    vectorize_here: Vectorize, redis_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = vectorize_here("doctor", "--json")
    (redis,) = [finding for finding in done.json if finding["name"] == "redis"]
    assert redis["status"] == "ok", redis
    assert " answers (Redis " in redis["detail"]
    held = "the use of API keys, heartbeats of workers, answers of models, the embedding cache"
    assert redis["detail"].endswith(f"maxmemory: no limit); it holds {held}")
    assert "volatile-lru" in redis["remedy"]
    monkeypatch.setenv("VECTORIZE_REDIS__URL", "redis://:hunter2@localhost:1/0")
    away = vectorize_here("doctor", "--json")
    (redis,) = [finding for finding in away.json if finding["name"] == "redis"]
    assert redis["status"] == "error"
    assert redis["detail"].startswith("Redis at localhost:1 cannot be used")
    assert (done.code, away.code) == (0, 1)
    assert "hunter2" not in away.out


def test_doctor_says_which_keys_there_are(
    vectorize_here: Vectorize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.yaml"
    monkeypatch.setenv("VECTORIZE_PROVIDERS__KEYS_FILE", str(file))
    (none,) = [finding for finding in vectorize_here("doctor", "--json").json if finding["name"] == "keys"]
    assert none["status"] == "off"
    file.write_text("keys: [{api_key: hunter2, name: a, provider: p}]")
    (found,) = [finding for finding in vectorize_here("doctor", "--json").json if finding["name"] == "keys"]
    assert (found["status"], found["detail"]) == ("ok", f"1 API keys (p) in {file}")
    file.write_text("keys: [{api_key: hunter2, name: a}, {api_key: hunter2, name: b}]")
    (wrong,) = [finding for finding in vectorize_here("doctor", "--json").json if finding["name"] == "keys"]
    assert wrong["status"] == "error"
    assert "hunter2" not in wrong["detail"]
