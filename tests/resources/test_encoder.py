"""The GPU resource: the settings, its own fields, and the run's shard decide what it lends."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from vectorize_pipelines.encoders import encoder_cache
from vectorize_pipelines.errors import ModelTooLargeError, SettingsError
from vectorize_pipelines.resources import encoder as resource_module
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, EncoderSettings


@pytest.fixture(autouse=True)
def _nothing_loaded(home: Path) -> None:
    encoder_cache().clear()
    encoder_cache().limit(3, None)


def settings_in_run(resource: EncoderResource, tags: dict[str, str]) -> EncoderSettings:
    """What the resource makes of the settings in a run with these tags."""
    seen: list[EncoderSettings] = []

    @dg.op
    def look(encoder: EncoderResource) -> None:
        seen.append(encoder._settings().encoder)

    @dg.job
    def job() -> None:
        look()

    job.execute_in_process(resources={"encoder": resource}, tags=tags)
    return seen[0]


def test_empty_fields_are_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {
        "DEVICE": "cpu",
        "ENGINE": "sentence-transformers",
        "PRECISION": "float32",
        "TOKEN_BUDGET": "1000",
        "MAX_LOADED": "2",
        "MEMORY_BYTES": "4000000000",
        "CACHE_DIRECTORY": str(tmp_path),
    }
    for name, value in values.items():
        monkeypatch.setenv(f"VECTORIZE_ENCODER__{name}", value)
    found = settings_in_run(EncoderResource(), {})
    assert {name: str(getattr(found, name.lower())) for name in values} == values


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "mps"),
        ("engine", "openvino"),
        ("precision", "bfloat16"),
        ("token_budget", 7),
        ("max_loaded", 1),
        ("memory_bytes", 5),
        ("cache_directory", "/exports"),
    ],
)
def test_a_field_wins_over_the_settings(field: str, value: Any) -> None:
    found = settings_in_run(EncoderResource(**{field: value}), {})
    assert str(getattr(found, field)) == str(value)


@pytest.mark.parametrize(
    ("tags", "device", "expected"),
    [
        ({"vectorize/shard": "2/4"}, "", "cuda:2"),
        ({"vectorize/shard": "5"}, "cuda", "cuda:2"),
        ({"vectorize/shard": "2/4"}, "cuda:0", "cuda:0"),
        ({"vectorize/shard": "2/4"}, "cpu", "cpu"),
        ({}, "", "auto"),
    ],
)
def test_the_shard_of_a_run_picks_its_gpu(
    monkeypatch: pytest.MonkeyPatch, tags: dict[str, str], device: str, expected: str
) -> None:
    monkeypatch.setattr(resource_module, "cuda_devices", lambda: ["a GPU"] * 3)
    assert settings_in_run(EncoderResource(device=device), tags).device == expected


def test_a_shard_that_is_none_fails_the_run() -> None:
    with pytest.raises(SettingsError, match="vectorize/shard is 'four'"):
        settings_in_run(EncoderResource(), {"vectorize/shard": "four"})


def test_a_model_beyond_the_limit_is_refused_and_nothing_is_loaded() -> None:
    with (
        pytest.raises(ModelTooLargeError, match=r"encoder\.memory_bytes leaves 1 MiB"),
        EncoderResource(memory_bytes=2**20).lease(DEFAULT_TEXT_MODEL),
    ):
        pass
    assert encoder_cache().loaded() == {}


def test_the_dimension_of_a_collection() -> None:
    resource = EncoderResource(max_loaded=1)
    with resource.lease(DEFAULT_TEXT_MODEL, 128) as short, resource.lease(DEFAULT_TEXT_MODEL) as whole:
        assert short.encode(["a text"]).shape == (1, 128)
        assert whole.encode(["a text"]).shape == (1, 384)
        assert len(encoder_cache().loaded()) == 1
