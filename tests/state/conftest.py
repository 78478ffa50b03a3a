"""Each test of the ledger runs on SQLite, and on a database of its own in a real PostgreSQL."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.servers.postgresql import Server, running
from tests.state.rows import MakeSettings
from vectorize_pipelines.settings import Settings, load_settings


@pytest.fixture(scope="session")
def postgresql(postgresql_program: None) -> Iterator[Server]:
    """A server for all tests of the database."""
    with running() as server:
        yield server


@pytest.fixture
def own_postgresql(postgresql_program: None) -> Iterator[Server]:
    """A server that the test may stop."""
    with running() as server:
        yield server


@pytest.fixture
def new_postgresql_database(postgresql: Server) -> str:
    """The address of an empty database."""
    return _make_database(postgresql, f"test_{uuid.uuid4().hex}")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def new_installation(request: pytest.FixtureRequest, tmp_path: Path) -> MakeSettings:
    """Makes settings with an empty database and an empty home at each call."""

    def make() -> Settings:
        name = f"test_{uuid.uuid4().hex}"
        if request.param == "sqlite":
            return load_settings(home=tmp_path / name)
        url = _make_database(request.getfixturevalue("postgresql"), name)
        return load_settings(home=tmp_path / name, ledger={"url": url})

    return make


@pytest.fixture
def installation(new_installation: MakeSettings) -> Settings:
    """Settings with an empty database and an empty home."""
    return new_installation()


def _make_database(server: Server, name: str) -> str:
    engine = sa.create_engine(_with_driver(server.url()), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    return server.url(name)


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)
