"""`vectorize models` from outside: what it prints, where, and with which exit code."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Vectorize
from tests.encoders.tiny_models import build_encoder
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL

KEYS = {
    *("model", "configured", "origin", "location", "size", "dimension", "engine", "device", "precision", "reason"),
    *("memory", "export", "export_size", "measured"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, which no test changes."""
    return build_encoder(tmp_path_factory.mktemp("model"), "bert")


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, and nothing of what this machine has fetched or exported."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("VECTORIZE_ENCODER__CACHE_DIRECTORY", str(tmp_path / "exports"))


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert all(set(row) == KEYS for row in rows)
    return {row["model"]: row for row in rows}


@pytest.mark.slow
def test_a_model_is_exported_once_and_listed(vectorize_here: Vectorize, model: Path, tmp_path: Path) -> None:
    before = by_name(vectorize_here("models", "list", "--json").json)
    assert before[DEFAULT_TEXT_MODEL]["configured"] == ["models.text"]
    assert (before[DEFAULT_TEXT_MODEL]["origin"], before[DEFAULT_TEXT_MODEL]["export"]) == ("bundled", None)
    assert (before["ViT-B/32"]["origin"], before["ViT-B/32"]["configured"]) == ("hub", ["models.image"])
    assert str(model) not in before

    done = vectorize_here("models", "export", model, "--json")
    assert done.code == 0, done.err
    assert "this happens once" in done.err
    (row,) = done.json
    assert (row["engine"], row["device"], row["origin"]) == ("openvino", "cpu", "directory")
    assert Path(row["export"]).parent == tmp_path / "exports" / "exports"
    assert row["export_size"] > 1000
    used = next(each for each in row["measured"] if each["precision"] == row["precision"])
    assert used["equal"]
    assert used["mean_cosine"] > 0.9999

    again = vectorize_here("models", "export", model)
    assert "this happens once" not in again.err
    assert f"text in {row['precision']}: equal (mean cosine" in again.out
    assert by_name(vectorize_here("models", "list", "--json").json)[str(model)]["export"] == row["export"]
    assert str(model) in vectorize_here("models", "list").out


def test_what_the_engine_torch_measured_is_listed(
    vectorize_here: Vectorize, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for role in ("TEXT", "IMAGE"):
        monkeypatch.setenv(f"VECTORIZE_MODELS__{role}", str(model))
    monkeypatch.setenv("VECTORIZE_ENCODER__DEVICE", "cpu")
    monkeypatch.setenv("VECTORIZE_ENCODER__ENGINE", "torch")
    done = vectorize_here("models", "prefetch", "--json")
    assert done.code == 0, done.err
    assert "this happens once" in done.err
    (row,) = done.json
    assert (row["engine"], row["device"], row["export"]) == ("torch", "cpu", None)
    assert any(each["precision"] == row["precision"] and each["equal"] for each in row["measured"])
    assert all(", torch " in each["machine"] for each in row["measured"])
    doctor = {finding["name"]: finding for finding in vectorize_here("doctor", "--json").json}
    assert f"torch on cpu in {row['precision']}" in doctor["model"]["detail"]
    assert "mean cosine" in doctor["model"]["detail"]

    assert vectorize_here("models", "export", model).code == 0
    row = by_name(vectorize_here("models", "list", "--json").json)[str(model)]
    assert (row["engine"], Path(row["export"]).parent.name) == ("torch", "exports")
    assert {each["machine"].rpartition(", ")[2].partition(" ")[0] for each in row["measured"]} == {"openvino", "torch"}
    for name in ("MODELS__TEXT", "MODELS__IMAGE", "ENCODER__ENGINE"):
        monkeypatch.delenv(f"VECTORIZE_{name}")
    others = by_name(vectorize_here("models", "list", "--json").json)
    assert others[str(model)]["origin"] == "export"


def test_what_is_made_ready_needs_no_hub(
    vectorize_here: Vectorize, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "models--someone--theirs" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(model)
    monkeypatch.setenv("VECTORIZE_MODELS__TEXT", "someone/theirs")
    monkeypatch.setenv("VECTORIZE_MODELS__IMAGE", "someone/theirs")
    done = vectorize_here("models", "prefetch", "--json")
    assert done.code == 0, done.err
    (row,) = done.json
    assert (row["model"], row["origin"]) == ("someone/theirs", "cache")
    assert row["measured"]
    listed = by_name(vectorize_here("models", "list", "--json").json)
    assert listed["someone/theirs"]["configured"] == ["models.text", "models.image"]
    doctor = {finding["name"]: finding for finding in vectorize_here("doctor", "--json").json}
    assert (doctor["model"]["status"], doctor["image model"]["status"]) == ("ok", "ok")
    assert "mean cosine" in doctor["model"]["detail"]


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "said"),
    [
        (("export", "no/such-model"), {}, 4, "no model 'no/such-model'"),
        (("export", DEFAULT_TEXT_MODEL, "/nowhere"), {}, 4, "there is no model folder '/nowhere'"),
        (("export", "vit-b/32"), {}, 4, "did you mean ViT-B/32"),
        (("prefetch", "no-such-model"), {}, 4, "sentence-transformers/no-such-model"),
        (("prefetch",), {}, 4, "ViT-B-32"),
        (("export",), {}, 2, "MODEL"),
        (("nonesuch",), {}, 2, "nonesuch"),
        (("list",), {"VECTORIZE_ENCODER__PRECISION": "bf16"}, 2, "encoder.precision"),
        (("list",), {"VECTORIZE_ENCODER__MAX_LOADED": "0"}, 2, "encoder.max_loaded"),
        (
            ("prefetch", DEFAULT_TEXT_MODEL),
            {"VECTORIZE_ENCODER__ENGINE": "nonesuch"},
            2,
            "encoder.engine (from VECTORIZE_ENCODER__ENGINE",
        ),
        (("prefetch", DEFAULT_TEXT_MODEL), {"VECTORIZE_ENCODER__DEVICE": "abacus"}, 2, "abacus"),
    ],
)
def test_bad_input(
    vectorize_here: Vectorize,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    code: int,
    said: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = vectorize_here("models", *arguments, "--json")
    assert said in done.err
    assert (done.code, done.out) == (code, "")


def test_a_model_that_cannot_be_exported_says_why(vectorize_here: Vectorize, model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(model, tmp_path / "model")
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1", "type": "sentence_transformers.models.Pooling"},
        {"path": "2", "type": "sentence_transformers.models.LSTM"},
    ]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "1").mkdir()
    (model / "1" / "config.json").write_text('{"word_embedding_dimension": 32}')
    done = vectorize_here("models", "export", model, "--json")
    assert done.code == 1
    assert (done.json[0]["export"], done.json[0]["measured"]) == (None, [])
    assert "module LSTM" in done.json[0]["reason"]


def test_doctor_says_what_would_run_and_what_there_is_no_room_for(
    vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTORIZE_MODELS__DIMENSION", "128")
    doctor = {finding["name"]: finding for finding in vectorize_here("doctor", "--json").json}
    assert doctor["model"]["status"] == "ok"
    assert "dim=128" in doctor["model"]["detail"]
    assert "openvino on cpu in a precision not measured yet" in doctor["model"]["detail"]
    assert (doctor["image model"]["status"], doctor["model memory"]["status"]) == ("off", "ok")
    assert "gpus" in doctor
    monkeypatch.setenv("VECTORIZE_ENCODER__MEMORY_BYTES", "1000000")
    done = vectorize_here("doctor", "--json")
    doctor = {finding["name"]: finding for finding in done.json}
    assert (done.code, doctor["model"]["status"]) == (1, "error")
    assert "encoder.memory_bytes allows 1 MiB" in doctor["model"]["detail"]
    monkeypatch.setenv("VECTORIZE_MODELS__DIMENSION", "999")
    doctor = {finding["name"]: finding for finding in vectorize_here("doctor", "--json").json}
    assert "cannot be cut to 999" in doctor["model"]["detail"]


@pytest.mark.slow
def test_a_collection_of_short_vectors(
    vectorize_here: Vectorize, tmp_path: Path, exported_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTORIZE_ENCODER__CACHE_DIRECTORY", str(exported_models))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "hens.md").write_text("The keeper feeds the hens at six.")
    (tmp_path / "docs" / "bread.md").write_text("The cook bakes bread on Fridays.")
    monkeypatch.setenv("VECTORIZE_MODELS__DIMENSION", "128")
    done = vectorize_here("ingest", tmp_path / "docs", "--collection", "short", "--json")
    assert done.code == 0, done.err
    (collection,) = vectorize_here("collections", "--json").json
    assert (collection["physical"], collection["dimension"]) == ("short__all-minilm-l6-v2-128", 128)
    monkeypatch.delenv("VECTORIZE_MODELS__DIMENSION")
    hits = vectorize_here("search", "who feeds the hens", "--collection", "short", "--limit", 1, "--json").json
    assert hits[0]["source_id"].endswith("hens.md")
    assert vectorize_here("ingest", tmp_path / "docs", "--collection", "short").code == 5
    monkeypatch.setenv("VECTORIZE_MODELS__DIMENSION", "999")
    refused = vectorize_here("ingest", tmp_path / "docs", "--collection", "long")
    assert refused.code == 2
    assert "384 dimensions, which cannot be cut to 999" in refused.err
