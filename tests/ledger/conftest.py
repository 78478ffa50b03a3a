"""Each test of the ledger runs on SQLite, and on a database of its own in a real PostgreSQL."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.servers.postgresql import Server, UnavailableError
from vectorize_pipelines.settings import Settings, load_settings

MakeSettings = Callable[[], Settings]


@contextmanager
def _running(folder: Path) -> Iterator[Server]:
    for place in (folder, *folder.parents):
        mode = place.stat().st_mode
        if not mode & 0o001:
            place.chmod(mode | 0o055)  # the server runs under another account than root's
    try:
        with Server(folder / "server") as server:
            yield server
    except UnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests. Where it cannot be had, they are skipped, which is a failure where CI is set."""
    with _running(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture
def own_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the test may stop."""
    with _running(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def new_installation(request: pytest.FixtureRequest, tmp_path: Path) -> MakeSettings:
    """Makes settings with an empty database and an empty home at each call."""

    def make() -> Settings:
        name = f"test_{uuid.uuid4().hex}"
        if request.param == "sqlite":
            return load_settings(home=tmp_path / name)
        server: Server = request.getfixturevalue("postgresql")
        engine = sa.create_engine(_with_driver(server.url()), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(f"create database {name}")
        return load_settings(home=tmp_path / name, ledger={"url": server.url(name)})

    return make


@pytest.fixture
def installation(new_installation: MakeSettings) -> Settings:
    """Settings with an empty database and an empty home."""
    return new_installation()


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)
