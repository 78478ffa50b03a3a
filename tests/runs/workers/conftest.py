"""Each test gets an installation that several hosts share: a database of its own, and an empty Redis."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from tests.servers import redis
from tests.servers.postgresql import Server, running
from vectorize_pipelines.runs.instance import open_instance
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.home import DAGSTER_YAML


@pytest.fixture(scope="session")
def postgresql(postgresql_program: None) -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def shared(home: Path, postgresql: Server, redis_server: redis.Server, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of such an installation, in the environment too."""
    redis_server.empty()
    name = f"test_{uuid.uuid4().hex}"
    url = postgresql.url().replace("postgresql://", "postgresql+psycopg2://", 1)
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    config = DAGSTER_YAML.read_text().replace("poll_interval_seconds: 30", "poll_interval_seconds: 1")
    config += f"\nstorage:\n  postgres:\n    postgres_url: {postgresql.url(name)}\n"
    file = home / "dagster" / "dagster.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(config)
    monkeypatch.setenv("VECTORIZE_REDIS__URL", redis_server.url)
    monkeypatch.setenv("VECTORIZE_RUN_LAUNCHER", "celery")
    monkeypatch.setenv("VECTORIZE_CORPUS__WATCH", "false")
    monkeypatch.setenv("DAGSTER_HOME", str(file.parent))
    return load_settings()


@pytest.fixture
def instance(shared: Settings) -> Iterator[dg.DagsterInstance]:
    with open_instance(shared) as instance:
        yield instance
