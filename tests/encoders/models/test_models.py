"""Finding models by name, and what is read from their folders."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.encoders.tiny_models import WIDTH, write_json
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.models.files import write_whole
from vectorize_pipelines.encoders.models.layout import read_layout
from vectorize_pipelines.encoders.models.locate import full_name, hub_caches, locate_model, read_spec
from vectorize_pipelines.encoders.models.revisions import REMEMBERED, revision
from vectorize_pipelines.errors import UnknownModelError

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize("name", [BUNDLED, "all-MiniLM-L6-v2"])
def test_bundled_model_is_found_under_both_names(name: str, cache_directory: Path) -> None:
    spec = describe_model(name, cache_directory=cache_directory)
    assert spec.name == BUNDLED
    assert (spec.dimension, spec.max_length, spec.pooling, spec.normalized) == (384, 256, "mean", True)
    assert (spec.prompt, spec.query_prompt) == ("", "")
    assert len(spec.revision) == 12


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("all-mpnet-base-v2", "sentence-transformers/all-mpnet-base-v2"),
        ("distilbert-base-nli-stsb-mean-tokens", "sentence-transformers/distilbert-base-nli-stsb-mean-tokens"),
        ("paraphrase-multilingual-MiniLM-L12-v2", "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("intfloat/e5-base-v2", "intfloat/e5-base-v2"),
    ],
)
def test_short_names_are_those_of_sentence_transformers(name: str, repository: str) -> None:
    assert full_name(name) == repository


@pytest.mark.slow
def test_folder_wins_over_a_name(plain_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_model("bert")
    monkeypatch.chdir(model.parent)
    assert locate_model("bert").origin == "directory"
    assert locate_model("./bert").name == "./bert"


@pytest.mark.parametrize("with_reference", [True, False])
def test_hugging_face_cache(
    plain_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_reference: bool
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--sentence-transformers--my-model"
    (folder / "snapshots").mkdir(parents=True)
    (folder / "snapshots" / "0123").symlink_to(plain_model("bert"))
    if with_reference:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0123")
    located = locate_model("my-model")
    assert (located.name, located.origin) == ("sentence-transformers/my-model", "cache")
    assert read_spec(located.directory, located.name).dimension == WIDTH


def test_interrupted_download_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--org--half" / "snapshots" / "0123"
    write_json(snapshot / "config.json", {})
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blobs" / "not-there")
    with pytest.raises(UnknownModelError, match="org/half"):
        locate_model("org/half")


def test_hub_caches_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "SENTENCE_TRANSFORMERS_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert hub_caches() == (Path.home() / ".cache" / "huggingface" / "hub",)
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", "/sentences")
    assert hub_caches() == (Path("/sentences"), Path("/models/hub"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-such/model", ["no-such/model", "folder", "bundled", "Hugging Face cache", "HF_TOKEN"]),
        ("no-such-model", ["sentence-transformers/no-such-model"]),
        ("/no/such/folder", ["no model folder", "/no/such/folder"]),
        ("not a valid name!", ["not a valid name!"]),
        ("", ["no model folder"]),
    ],
)
def test_unknown_model_says_where_it_was_looked_for(name: str, words: list[str]) -> None:
    with pytest.raises(UnknownModelError) as error:
        locate_model(name)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "name", ["a" * 300, "/" + "a" * 400, "~nobody-of-this-name/x", "local-dir:~nobody-of-this-name"]
)
def test_a_name_that_is_no_path_is_an_unknown_model(name: str) -> None:
    with pytest.raises(UnknownModelError, match="no model"):
        describe_model(name)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"neither modules\.json nor config\.json"):
        locate_model(str(tmp_path))
    write_json(tmp_path / "config.json", {"model_type": "bert", "hidden_size": 8})
    with pytest.raises(UnknownModelError, match="no weights"):
        read_spec(tmp_path, "empty")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnknownModelError, match=r"config\.json"):
        read_spec(tmp_path, "bad")


@pytest.mark.parametrize(
    ("pooling", "expected", "width"),
    [
        ({"pooling_mode_mean_tokens": True}, "mean", 1),
        ({"pooling_mode_cls_token": True}, "cls", 1),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, "max+mean", 2),
        ({"pooling_mode": "lasttoken"}, "lasttoken", 1),
        ({"pooling_mode": ["mean", "cls"]}, "mean+cls", 2),
    ],
)
def test_pooling(tmp_path: Path, pooling: dict[str, Any], expected: str, width: int) -> None:
    write_json(tmp_path / "config.json", {"model_type": "bert", "hidden_size": 8})
    write_json(tmp_path / "1_Pooling" / "config.json", {"word_embedding_dimension": 8, **pooling})
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    write_json(tmp_path / "modules.json", modules)
    layout = read_layout(tmp_path)
    assert ("+".join(layout.pooling_modes), layout.dimension) == (expected, 8 * width)


@pytest.mark.parametrize(
    ("general", "document", "query"),
    [
        ({}, "", ""),
        ({"prompts": {"query": "q: ", "document": "d: "}}, "d: ", "q: "),
        ({"prompts": {"query": "q: ", "passage": "p: "}}, "p: ", "q: "),
        ({"prompts": {"query": "q: ", "document": ""}}, "", "q: "),
        ({"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": "query"}, "", "q: "),
        ({"prompts": {"all": "a: "}, "default_prompt_name": "all"}, "a: ", "a: "),
        ({"prompts": {"query": "", "document": "", "all": "a: "}, "default_prompt_name": "all"}, "a: ", "a: "),
        ({"prompts": {"passage": "p: "}, "default_prompt_name": "passage"}, "p: ", ""),
        ({"prompts": None, "default_prompt_name": None}, "", ""),
    ],
)
def test_prompts(
    sentence_model: Callable[..., Path], tmp_path: Path, general: dict[str, Any], document: str, query: str
) -> None:
    for path in sentence_model("bert").iterdir():
        (tmp_path / path.name).symlink_to(path)
    write_json(tmp_path / "config_sentence_transformers.json", general)
    layout = read_layout(tmp_path)
    assert (layout.prompt, layout.query_prompt) == (document, query)


def test_prompt_is_part_of_the_fingerprint(sentence_model: Callable[..., Path]) -> None:
    general = {"prompts": {"document": "d: ", "query": "q: "}}
    spec = read_spec(sentence_model("bert", "prompted", general=general), "m")
    assert spec.fingerprint.endswith("prompt='d: '")
    assert "q: " not in spec.fingerprint


def test_revision_follows_the_content_not_the_place(plain_model: Callable[[str], Path], tmp_path: Path) -> None:
    source = plain_model("bert")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in source.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    first = revision(copy, [], None)
    assert first == revision(source, [], None)
    (copy / "README.md").write_text("how it was trained")
    (copy / "pytorch_model.bin").write_bytes(b"a copy in the older format")
    assert first == revision(copy, [], None)
    (copy / "vocab.txt").write_text("another vocabulary")
    assert first != revision(copy, [], None)


def test_digests_are_remembered_and_their_loss_is_harmless(plain_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = plain_model("bert")
    for path in model.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    first = revision(model, [], tmp_path)
    remembered = json.loads((tmp_path / REMEMBERED).read_text())
    assert str((model / "model.safetensors").resolve()) in remembered
    forged = {path: [size, time, "0" * 32] for path, (size, time, _) in remembered.items()}
    write_json(tmp_path / REMEMBERED, forged)
    assert revision(model, [], tmp_path) != first, "the remembered digests were not used"
    for spoilt in ("", "{", "[]", '{"a": 1}'):
        (tmp_path / REMEMBERED).write_text(spoilt)
        assert revision(model, [], tmp_path) == first
    os.utime(model / "config.json", ns=(10**18 + 1, 10**18 + 1))
    write_json(tmp_path / REMEMBERED, forged)
    assert revision(model, [], tmp_path) != first


def test_file_written_just_now_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    revision(tmp_path, [], tmp_path / "cache")
    assert json.loads((tmp_path / "cache" / REMEMBERED).read_text()) == {}


def test_unwritable_cache_directory_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "file").write_text("no directory")
    assert len(revision(tmp_path, [], tmp_path / "file")) == 12


def test_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "folder" / "file", "first")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_whole(tmp_path / "folder" / "file", "second")
    assert [path.read_text() for path in (tmp_path / "folder").iterdir()] == ["first"]


def test_describing_a_model_imports_nothing_heavy(cache_directory: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from vectorize_pipelines.encoders import describe_model, load_tokenizer;"
        f"d = Path({str(cache_directory)!r}); describe_model({BUNDLED!r}, cache_directory=d);"
        f"load_tokenizer({BUNDLED!r}, cache_directory=d);"
        "heavy = {'numpy', 'torch', 'transformers', 'huggingface_hub', 'sentence_transformers', 'openvino', 'dagster'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
