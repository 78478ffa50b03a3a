"""What the package offers at its top, what it has as extras, and where it keeps things."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vectorize_pipelines
from vectorize_pipelines.core import extras, installation
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.settings import PROJECT_ROOT, StoreSettings, load_settings
from vectorize_pipelines.state.database import database_url
from vectorize_pipelines.stores import open_store

PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]


def test_the_public_names() -> None:
    from vectorize_pipelines import VectorizeClient, __version__, load_encoder, load_settings, open_store
    from vectorize_pipelines.client import VectorizeClient as Client
    from vectorize_pipelines.encoders import load_encoder as load

    assert (VectorizeClient, load_encoder) == (Client, load)
    assert callable(open_store)
    assert load_settings().home
    assert __version__ == PROJECT["version"]
    assert set(vectorize_pipelines.__all__) <= set(dir(vectorize_pipelines))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vectorize_pipelines.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import vectorize_pipelines; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    assert [name for name in done.stdout.split() if name.startswith("vectorize_pipelines.")] == []
    assert not {"pydantic", "numpy", "dagster"} & set(done.stdout.split())


def test_the_package_is_in_its_checkout() -> None:
    assert installation.checkout() == PROJECT_ROOT
    assert installation.project_folder() == PROJECT_ROOT


def test_without_a_checkout_everything_lies_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "vectorize_pipelines"
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text('[project]\nname = "another"\n')
    monkeypatch.setattr(installation, "package_folder", lambda: package)
    installation.checkout.cache_clear()
    try:
        assert installation.project_folder() == Path.cwd()
        assert load_settings({}).home == Path.cwd() / ".vectorize"
    finally:
        installation.checkout.cache_clear()


def test_every_extra_is_one_of_the_project_and_part_of_all() -> None:
    optional: dict[str, list[str]] = PROJECT["optional-dependencies"]
    (everything,) = optional["all"]
    named = everything.removeprefix("vectorize-pipelines[").removesuffix("]").split(",")
    assert set(named) == set(optional) - {"all"} == set(extras.EXTRAS)
    for extra, (_, package) in extras.EXTRAS.items():
        assert any(requirement.startswith((f"{package}>=", f"{package}[")) for requirement in optional[extra])


@pytest.mark.parametrize(("kind", "module"), [("qdrant", "qdrant_client"), ("weaviate", "weaviate")])
def test_a_store_without_its_client(kind: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingsError, match=rf"{kind} needs .*: pip install 'vectorize-pipelines\[{kind}\]'"):
        open_store(StoreSettings(kind=kind), tmp_path)


def test_postgresql_without_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dagster_postgres", None)
    settings = load_settings({"VECTORIZE_LEDGER__URL": "postgresql://user@localhost/ledger"})
    with pytest.raises(SettingsError, match=r"PostgreSQL needs .*: pip install 'vectorize-pipelines\[postgres\]'"):
        database_url(settings)
