"""How LanceDB's storage options are given, and that no secret is among them."""

from pathlib import Path

import pytest

from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.settings import load_settings

VARIABLE = "VECTORIZE_STORE__LANCEDB__STORAGE_OPTIONS"
WANTED = {"endpoint": "http://minio:9000", "allow_http": "true", "timeout": "60", "secret_access_key": "env:SECRET"}


def test_they_are_a_mapping_in_yaml_and_json_in_a_variable(tmp_path: Path) -> None:
    given = '{"endpoint": "http://minio:9000", "allow_http": true, "timeout": 60, "secret_access_key": "env:SECRET"}'
    assert load_settings({VARIABLE: given}, tmp_path).store.lancedb.storage_options == WANTED
    (tmp_path / "vectorize.yaml").write_text(f"store: {{lancedb: {{storage_options: {given}}}}}")
    assert load_settings({}, tmp_path).store.lancedb.storage_options == WANTED


def test_a_reference_is_replaced_by_its_variable_when_the_store_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({}, store={"lancedb": {"storage_options": WANTED}}).store.lancedb
    with pytest.raises(SettingsError, match=r"storage_options\.secret_access_key refers to the variable SECRET"):
        settings.resolved_options()
    monkeypatch.setenv("SECRET", "hunter2hunter2")
    assert settings.resolved_options() == ({**WANTED, "secret_access_key": "hunter2hunter2"}, ("hunter2hunter2",))
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    "option",
    [
        *("secret_access_key", "AWS_SECRET_ACCESS_KEY", "session_token", "account_key", "sas_token", "client_secret"),
        *("google_service_account_key", "sse_customer_key_base64"),
    ],
)
def test_a_secret_by_its_name_is_refused_and_not_shown(tmp_path: Path, option: str) -> None:
    (tmp_path / "vectorize.yaml").write_text(f"store: {{lancedb: {{storage_options: {{{option}: hunter2}}}}}}")
    with pytest.raises(SettingsError, match=rf"vectorize\.yaml.*{option} holds a secret: write env:NAME") as error:
        load_settings({}, tmp_path)
    assert "hunter2" not in str(error.value)


def test_a_secret_in_an_address_is_refused(tmp_path: Path) -> None:
    options = {"proxy_url": "http://someone:hunter2@proxy:3128"}
    with pytest.raises(SettingsError, match="proxy_url holds a secret") as error:
        load_settings({}, tmp_path, store={"lancedb": {"storage_options": options}})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [("access_key_id", "AKIA"), ("endpoint", "minio:9000"), ("endpoint", "https://minio:9000/"), ("region", "auto")],
)
def test_what_is_no_secret_is_taken(tmp_path: Path, option: str, value: str) -> None:
    settings = load_settings({}, tmp_path, store={"lancedb": {"storage_options": {option: value}}})
    assert settings.store.lancedb.storage_options == {option: value}
