"""Where settings come from, which one wins, and what a wrong one says."""

import logging
from pathlib import Path
from typing import get_args

import pytest

from vectorize_pipelines.core.image_limits import DEFAULT_LIMITS, ImageLimits
from vectorize_pipelines.encoders import engine_names
from vectorize_pipelines.encoders.configured import load_options
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.settings import EncoderSettings, Settings, load_settings, setting_paths, variable_name


def test_defaults_need_nothing(tmp_path: Path) -> None:
    settings = load_settings({}, tmp_path)
    assert settings.store.kind == "lancedb"
    assert settings.models.text == "sentence-transformers/all-MiniLM-L6-v2"
    assert settings.kafka.topic_prefix == "vectorize"


def test_environment_wins_over_dotenv_wins_over_yaml(tmp_path: Path) -> None:
    (tmp_path / "vectorize.yaml").write_text("corpus: {collection: from-yaml, path: /yaml}\nlog_level: ERROR\n")
    (tmp_path / ".env").write_text("VECTORIZE_CORPUS__COLLECTION=from-dotenv\nVECTORIZE_CORPUS__PATH=/dotenv\n")
    settings = load_settings({"VECTORIZE_CORPUS__COLLECTION": "from-environment"}, tmp_path)
    assert (settings.corpus.collection, settings.corpus.path, settings.log_level) == (
        "from-environment",
        "/dotenv",
        "ERROR",
    )


@pytest.mark.parametrize(
    ("environment", "yaml", "said"),
    [
        ({"VECTORIZE_STORE__GRPC_PORT": "none"}, "", ["store.grpc_port", "VECTORIZE_STORE__GRPC_PORT in the env"]),
        ({}, "store: {grpc_port: 99999}", ["store.grpc_port", "vectorize.yaml", "65535"]),
        ({}, "store: {knid: lancedb}", ["store.knid", "vectorize.yaml", "did you mean store.kind"]),
        ({"VECTORIZE_STORE__KNID": "x"}, "", ["VECTORIZE_STORE__KNID", "did you mean VECTORIZE_STORE__KIND"]),
        ({"VECTORIZE_CORPUS__COLLECTION": "No Spaces"}, "", ["corpus.collection", "VECTORIZE_CORPUS__COLLECTION"]),
        ({"VECTORIZE_PARTITIONS__START": "2999-01-01"}, "", ["partitions.start", "future"]),
        ({"VECTORIZE_MODELS__DIMENSION": "0"}, "", ["models.dimension", "VECTORIZE_MODELS__DIMENSION in the env"]),
        ({"VECTORIZE_ENCODER__ENGINE": "openvin"}, "", ["encoder.engine", "VECTORIZE_ENCODER__ENGINE", "'openvino'"]),
        ({}, "encoder: {device: gpu}", ["encoder.device", "vectorize.yaml", "no device 'gpu'", "cuda:N"]),
        ({"VECTORIZE_ENCODER__PRECISION": "half"}, "", ["encoder.precision", "'bfloat16'"]),
        ({}, "images: {max_pixels: 0}", ["images.max_pixels", "vectorize.yaml"]),
        ({}, "stores: {kind: lancedb}", ["stores (from", "vectorize.yaml", "did you mean"]),
        ({}, "Store: {kind: lancedb}", ["Store (from", "vectorize.yaml", "is not a setting"]),
        ({}, "_env_file: other.env", ["_env_file (from", "vectorize.yaml", "is not a setting"]),
        ({}, "1: lancedb", ["vectorize.yaml", "tree of settings"]),
        ({"VECTORIZE_STORE": '{"kind": "lancedb"}'}, "", ["VECTORIZE_STORE in the environment is not a setting"]),
        (
            {"VECTORIZE_KAFKA__SECURITY_PROTOCOL": "SASL_SSL"},
            "kafka: {sasl_mechanism: PLAIN}",
            [
                "kafka (from VECTORIZE_KAFKA__SECURITY_PROTOCOL in the environment and",
                "vectorize.yaml",
                "sasl_username",
            ],
        ),
        ({}, "- a list", ["vectorize.yaml", "tree of settings"]),
        ({}, "a: [", ["vectorize.yaml", "YAML"]),
    ],
)
def test_a_wrong_setting_names_itself_and_its_source(
    environment: dict[str, str], yaml: str, said: list[str], tmp_path: Path
) -> None:
    (tmp_path / "vectorize.yaml").write_text(yaml)
    with pytest.raises(SettingsError) as caught:
        load_settings(environment, tmp_path)
    for part in said:
        assert part in str(caught.value)


def test_names_of_the_earlier_services_are_aliases_and_lose_to_current_names(tmp_path: Path) -> None:
    old = {
        "VECTORIZE_MASTER_KAFKA_BOOTSTRAP_SERVERS": "old:9092",
        "VECTORIZE_MASTER_WEAVIATE_URL": "http://weaviate:8080",
        "VECTORIZE_WORKER_DEVICE": "cuda",
    }
    settings = load_settings(old, tmp_path)
    assert settings.kafka.bootstrap_servers == "old:9092"
    assert (settings.store.kind, settings.store.url) == ("weaviate", "http://weaviate:8080")
    assert settings.encoder.device == "cuda"
    settings = load_settings({**old, "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS": "new:9092"}, tmp_path)
    assert settings.kafka.bootstrap_servers == "new:9092"


def test_a_name_of_the_earlier_services_counts_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("VECTORIZE_STORE__URL=http://dotenv\nVECTORIZE_STORE__KIND=qdrant\n")
    store = load_settings({"VECTORIZE_MASTER_WEAVIATE_URL": "http://old"}, tmp_path).store
    assert (store.kind, store.url) == ("weaviate", "http://old")
    (tmp_path / ".env").write_text("VECTORIZE_MASTER_WEAVIATE_URL=http://old\n")
    store = load_settings({"VECTORIZE_STORE__KIND": "qdrant"}, tmp_path).store
    assert (store.kind, store.url) == ("qdrant", "http://old")


def test_an_empty_variable_is_not_given_and_letters_of_its_name_are_of_either_case(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("VECTORIZE_STORE__KIND=qdrant\n")
    assert load_settings({"VECTORIZE_STORE__KIND": ""}, tmp_path).store.kind == "qdrant"
    assert load_settings({"vectorize_store__kind": "weaviate"}, tmp_path).store.kind == "weaviate"


def test_sections_are_merged_value_by_value_up_to_what_the_caller_gives(tmp_path: Path) -> None:
    (tmp_path / "vectorize.yaml").write_text(
        "store: {kind: qdrant, url: 'http://yaml', qdrant: {hnsw_m: 8, shards: 2}}"
    )
    environment = {"VECTORIZE_STORE__URL": "http://environment", "VECTORIZE_STORE__QDRANT__SHARDS": "3"}
    store = load_settings(environment, tmp_path, store={"qdrant": {"replicas": 4}}).store
    assert (store.kind, store.url) == ("qdrant", "http://environment")
    assert (store.qdrant.hnsw_m, store.qdrant.shards, store.qdrant.replicas) == (8, 3, 4)


def test_settings_that_are_not_loaded_read_no_variable_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VECTORIZE_LOG_LEVEL", "ERROR")
    monkeypatch.setenv("log_level", "ERROR")
    Path(".env").write_text("VECTORIZE_LOG_LEVEL=ERROR\nlog_level=ERROR\n")
    assert Settings().log_level == "INFO"


def test_how_models_run_reaches_the_encoder(tmp_path: Path) -> None:
    (tmp_path / "vectorize.yaml").write_text(
        "encoder: {precision: float32, token_budget: 9, token_budget_share: 0.5, cache_directory: exports}\n"
        "images: {max_pixels: 7, max_file_bytes: 8, decoding_threads: 1}\n"
    )
    settings = load_settings({}, tmp_path)
    assert load_options(settings) == {
        "precision": "float32",
        "token_budget": 9,
        "token_budget_share": 0.5,
        "image_limits": ImageLimits(max_bytes=8, max_pixels=7),
        "decoding_threads": 1,
        "cache_directory": Path.cwd() / "exports",
        "pickled_weights": False,
        "settings": settings,
    }
    defaults = load_options(load_settings({}, tmp_path / "nothing"))
    assert defaults["image_limits"] == DEFAULT_LIMITS
    assert defaults["precision"] == "auto"


def test_secrets_are_neither_shown_nor_repeated_in_errors(tmp_path: Path) -> None:
    environment = {"VECTORIZE_STORE__API_KEY": "hunter2", "VECTORIZE_REDIS__URL": "redis://:hunter2@host"}
    assert "hunter2" not in repr(load_settings(environment, tmp_path))
    with pytest.raises(SettingsError) as caught:
        load_settings({**environment, "VECTORIZE_STORE__GRPC_PORT": "x"}, tmp_path)
    assert "hunter2" not in str(caught.value)


def test_nothing_of_what_is_merged_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "1")
    with caplog.at_level(logging.DEBUG):
        load_settings({"VECTORIZE_STORE__API_KEY": "hunter2"}, tmp_path)
    assert "hunter2" not in caplog.text


def test_lists_are_separated_by_commas_in_variables_and_are_lists_in_yaml(tmp_path: Path) -> None:
    assert load_settings({"VECTORIZE_CORPUS__INCLUDE": "*.md, *.txt"}, tmp_path).corpus.include == ("*.md", "*.txt")
    assert load_settings({"VECTORIZE_CORPUS__INCLUDE": '["a,b", "*.md"]'}, tmp_path).corpus.include == ("a,b", "*.md")
    assert load_settings({"VECTORIZE_CORPUS__INCLUDE": "[ab].md"}, tmp_path).corpus.include == ("[ab].md",)
    (tmp_path / "vectorize.yaml").write_text("corpus: {include: ['*.pdf']}")
    assert load_settings({}, tmp_path).corpus.include == ("*.pdf",)


def test_another_home_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings({"VECTORIZE_HOME": "elsewhere"}).home == tmp_path / "elsewhere"


def test_every_setting_has_a_variable_and_a_description() -> None:
    names = [variable_name(path) for path in setting_paths()]
    assert len(names) == len(set(names))
    assert {"VECTORIZE_HOME", "VECTORIZE_STORE__KIND", "VECTORIZE_ENCODER__ENGINE"} <= set(names)


def test_every_engine_can_be_set() -> None:
    assert set(get_args(EncoderSettings.model_fields["engine"].annotation)) == set(engine_names())
