"""The commands, and a search by HTTP, on a LanceDB that lies in an object store."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import Vectorize
from tests.gateway.searching import served
from tests.servers.s3 import SECRET, Server
from vectorize_pipelines.settings import PREFIX, StoreSettings, load_settings


@pytest.fixture
def stored_in_bucket(bucket_store: StoreSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names the bucket."""
    monkeypatch.setenv(f"{PREFIX}STORE__URL", str(bucket_store.url))
    options = json.dumps(bucket_store.lancedb.storage_options)
    monkeypatch.setenv(f"{PREFIX}STORE__LANCEDB__STORAGE_OPTIONS", options)


def _store_findings(vectorize: Vectorize) -> list[tuple[str, str]]:
    done = vectorize("doctor", "--json")
    assert SECRET not in done.out + done.err
    return [(each["status"], each["detail"]) for each in done.json if each["name"] == "store"]


@pytest.mark.slow
def test_a_folder_is_ingested_searched_and_changed(
    vectorize_here: Vectorize,
    stored_in_bucket: None,
    home: Path,
    exported_models: Path,
    tmp_path: Path,
    bucket: str,
    s3: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("The keeper feeds the hens at six.")
    (folder / "b.md").write_text("The cook bakes bread on Fridays.")
    assert vectorize_here("ingest", folder, "--json").json["encoded"] == 2
    (folder / "b.md").unlink()
    assert vectorize_here("ingest", folder, "--json").json["deleted"] == 1
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv(f"{PREFIX}HOME", str(_another_home(tmp_path, exported_models)))
        (hit,) = vectorize_here("search", "who has bread", "--json").json
        assert hit["source_id"].endswith("a.md")
    (collection,) = vectorize_here("collections", "--json").json
    assert (collection["location"], collection["rows"]) == (f"s3://{bucket}/vectors", 1)
    findings = _store_findings(vectorize_here)
    assert [status for status, _ in findings] == ["ok", "ok"]
    assert f"s3://{bucket}/vectors: with SQLite" in findings[1][1]
    with served(load_settings()) as client:
        (found,) = client.post("/collections/corpus/search", json={"query": "hens"}).json()["hits"]
        assert found["source_id"].endswith("a.md")
    assert vectorize_here("collections", "drop", collection["physical"], "--yes").code == 0
    assert vectorize_here("collections", "--json").json == []
    assert not (home / "lancedb").exists()
    assert not s3.keys(bucket, f"vectors/{collection['physical']}")


def _another_home(folder: Path, exported_models: Path) -> Path:
    another = folder / "another home"
    another.mkdir()
    (another / "encoders").symlink_to(exported_models)
    return another


def _without_http(options: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in options.items() if name != "allow_http"}


def _with_a_secret(options: dict[str, str]) -> dict[str, str]:
    return {**options, "secret_access_key": SECRET}


def _with_an_unset_variable(options: dict[str, str]) -> dict[str, str]:
    return {**options, "secret_access_key": "env:NO_SUCH_VARIABLE"}


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        (_without_http, 5, "allow_http: true"),
        (_with_a_secret, 2, "secret_access_key holds a secret: write env:NAME"),
        (_with_an_unset_variable, 2, "secret_access_key refers to the variable NO_SUCH_VARIABLE, which is not set"),
    ],
)
@pytest.mark.slow
def test_a_wrong_option_is_named_with_what_to_do(
    vectorize_here: Vectorize,
    stored_in_bucket: None,
    bucket_store: StoreSettings,
    monkeypatch: pytest.MonkeyPatch,
    changed: Callable[[dict[str, str]], dict[str, str]],
    code: int,
    said: str,
) -> None:
    options = json.dumps(changed(bucket_store.lancedb.storage_options))
    monkeypatch.setenv(f"{PREFIX}STORE__LANCEDB__STORAGE_OPTIONS", options)
    done = vectorize_here("collections")
    assert done.code == code
    assert said in done.err
    assert SECRET not in done.out + done.err


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_named(
    vectorize_here: Vectorize, stored_in_bucket: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{PREFIX}STORE__URL", "s3://no-such-bucket/vectors")
    done = vectorize_here("collections")
    assert done.code == 5
    assert "s3://no-such-bucket/vectors; there is no such bucket: make it, or correct store.url" in done.err


def test_what_the_environment_says_to_every_client_of_s3_is_enough(
    vectorize_here: Vectorize, home: Path, s3: Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources in a bucket are read with the same variables."""
    monkeypatch.setenv(f"{PREFIX}STORE__URL", f"s3://{bucket}")
    for name, value in {
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key-of-tests",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }.items():
        monkeypatch.setenv(name, value)
    done = vectorize_here("collections", "--json")
    assert (done.code, done.json) == (0, [])


def test_options_of_an_object_store_are_refused_for_a_folder(
    vectorize_here: Vectorize, stored_in_bucket: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(f"{PREFIX}STORE__URL", str(tmp_path))
    done = vectorize_here("collections")
    assert done.code == 2
    assert "store.url names none: give a URI with one of s3" in done.err
