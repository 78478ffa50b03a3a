"""A brand-new home that many processes open at once, whichever way they come in; and who else may look into a home."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest.mock import patch

import dagster as dg
import pytest
import sqlalchemy as sa

from tests.attacks.together import WAIT_SECONDS, Command, commands_together, together
from tests.commands import Vectorize
from tests.forks import Fork
from tests.servers import postgresql
from vectorize_pipelines.runs.instance import open_instance, prepare
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state import home as home_module
from vectorize_pipelines.state.callbacks import CallbackOutbox
from vectorize_pipelines.state.dagster_databases import DATABASES
from vectorize_pipelines.state.embedding_cache import SQLiteEmbeddingCache
from vectorize_pipelines.state.generations import Generations
from vectorize_pipelines.state.home import embedding_cache, use_dagster_home
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.manifest import open_manifest
from vectorize_pipelines.state.migrations import HEAD, VERSION_TABLE
from vectorize_pipelines.state.versions import SourceVersions
from vectorize_pipelines.stores import open_store

HOMES = 3
#: The version that Dagster stamps where it finds tables without one, as the second of two processes does.
OTHER_HEAD = "5771160a95ad"

DEFINITIONS = ["-m", "vectorize_pipelines.definitions"]


def heads(folder: Path) -> dict[str, int]:
    """Database of Dagster's -> how many versions it says it has."""
    found = {}
    for name in DATABASES:
        with closing(sqlite3.connect(folder / name)) as connection:
            found[str(name)] = len(connection.execute("select version_num from alembic_version").fetchall())
    return found


def assert_empty(instance: dg.DagsterInstance) -> None:
    """Each of its databases answers, and has nothing in it."""
    assert instance.get_runs_count() == 0
    assert instance.all_asset_keys() == []
    assert instance.all_instigator_state() == []


ONE_HEAD = {str(name): 1 for name in DATABASES}


def _open_the_instance(home: str) -> None:
    with open_instance(load_settings({"VECTORIZE_HOME": home})) as instance:
        assert instance.get_runs_count() == 0


def _open_as_dagster_does(home: str) -> None:
    os.environ.update(VECTORIZE_HOME=home, DAGSTER_HOME=f"{home}/dagster")
    with dg.DagsterInstance.get() as instance:
        assert_empty(instance)


def _open_what_is_ours(home: str) -> None:
    settings = load_settings({"VECTORIZE_HOME": home})
    for opened in (RequestLedger, CallbackOutbox, SourceVersions, Generations):
        opened.open(settings).close()
    open_manifest(settings, "corpus").close()
    SQLiteEmbeddingCache(embedding_cache(settings), 2**20).close()


@pytest.mark.timeout(900)
def test_a_new_home_is_made_once(tmp_path: Path) -> None:
    by_us = [tmp_path / f"by a command {n}" for n in range(HOMES)]
    by_dagster = [tmp_path / f"by Dagster {n}" for n in range(HOMES)]
    ours = [tmp_path / f"our own files {n}" for n in range(HOMES)]
    for home in by_dagster:
        use_dagster_home(load_settings({"VECTORIZE_HOME": str(home)}))  # a folder with a dagster.yaml in it, no more
    attacks = [(_open_the_instance, home) for home in by_us]
    attacks += [(_open_as_dagster_does, home) for home in by_dagster]
    attacks += [(_open_what_is_ours, home) for home in ours]
    assert together(attacks) == []
    for home in by_us + by_dagster:
        assert heads(home / "dagster") == ONE_HEAD
        assert list((home / "dagster").glob(".making*")) == []


def test_what_two_processes_made_is_mended(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with open_instance(settings):
        pass
    folder = settings.home / "dagster"
    for name in DATABASES:
        with closing(sqlite3.connect(folder / name)) as connection, connection:
            connection.execute("insert into alembic_version values (?)", (OTHER_HEAD,))
    with open_instance(settings) as instance:
        assert_empty(instance)
    assert heads(folder) == ONE_HEAD
    assert len([record for record in caplog.records if "by several processes at once" in record.message]) == 3


@pytest.mark.parametrize("name", DATABASES, ids=str)
def test_a_half_made_database_is_finished(settings: Settings, name: Path) -> None:
    """Whoever made it was killed: after the file, after the tables, or before the last one was made."""
    with open_instance(settings):
        pass
    folder = settings.home / "dagster"
    with closing(sqlite3.connect(folder / name)) as connection, connection:
        connection.execute("drop table alembic_version")
    with open_instance(settings) as instance:
        assert heads(folder) == ONE_HEAD, "whoever uses it first would finish it, many at once"
        assert_empty(instance)
    (folder / name).unlink()
    with open_instance(settings) as instance:
        assert instance.get_runs_count() == 0
    (folder / name).write_bytes(b"")
    with open_instance(settings) as instance:
        assert_empty(instance)
    assert heads(folder) == ONE_HEAD


def _die_while_making(moves: int) -> None:
    """Open the instance; be killed once so many of its databases are at their place."""
    replace, left = Path.replace, moves

    def move(self: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return replace(self, target)

    with patch.object(Path, "replace", move), open_instance(load_settings()):
        pass


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_killed_maker_leaves_nothing_that_stays(settings: Settings, moves: int) -> None:
    """It is killed when so many of the three databases are at their place."""
    assert Fork(_die_while_making, moves).wait(WAIT_SECONDS) == -signal.SIGKILL
    folder = settings.home / "dagster"
    assert sum((folder / name).exists() for name in DATABASES) == moves
    with open_instance(settings) as instance:
        assert_empty(instance)
    assert heads(folder) == ONE_HEAD
    assert list(folder.glob(".making*")) == []


@pytest.fixture(scope="module")
def server(postgresql_program: None) -> Iterator[postgresql.Server]:
    with postgresql.running() as server:
        yield server


@contextmanager
def connected(server: postgresql.Server, database: str = "postgres") -> Iterator[sa.Connection]:
    address = server.url(database).replace("postgresql://", "postgresql+psycopg2://", 1)
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection


def on_a_server(server: postgresql.Server, home: Path, more: str = "", template: str = "template1") -> str:
    """Give a new home a new database, in the words of Dagster's documentation; return the database's name."""
    name = f"installation_{uuid.uuid4().hex}"
    with connected(server) as connection:
        connection.execute(sa.text(f"create database {name} template {template}"))
    storage = f"\nstorage: {{postgres: {{postgres_url: '{server.url(name)}'{more}}}}}\n"
    (home / "dagster").mkdir(parents=True)
    (home / "dagster" / "dagster.yaml").write_text(home_module.DAGSTER_YAML.read_text() + storage)
    return name


def made(server: postgresql.Server, database: str) -> tuple[set[str], list[str], set[str]]:
    """The tables of a database, the versions that it says it has, and the migrations that count as done."""
    with connected(server, database) as connection:
        return (
            set(sa.inspect(connection).get_table_names()),
            list(connection.execute(sa.text("select version_num from alembic_version")).scalars()),
            set(connection.execute(sa.text("select name from secondary_indexes")).scalars()),
        )


@pytest.mark.timeout(900)
def test_a_new_database_of_a_server_is_made_once(server: postgresql.Server, tmp_path: Path) -> None:
    homes = [tmp_path / f"home{n}" for n in range(HOMES)]
    names = [on_a_server(server, home) for home in homes]
    attacks = [(_open_as_dagster_does, homes[0]), (_open_the_instance, homes[1]), (_open_as_dagster_does, homes[2])]
    assert together(attacks) == []
    tables, versions, migrations = made(server, names[0])
    assert {"runs", "event_logs", "asset_keys", "instigators", "daemon_heartbeats"} <= tables
    assert len(versions) == 1
    assert [made(server, name) for name in names] == [(tables, versions, migrations)] * HOMES


HALF_MADE = {
    "before the last tables of runs": ["drop table daemon_heartbeats", "drop table alembic_version"],
    "before the version": ["drop table alembic_version"],
    "before the version was written": ["delete from alembic_version"],
    "before the migrations": ["delete from secondary_indexes", "drop table asset_keys"],
    "before the schedules": ["drop table jobs", "drop table job_ticks", "drop table instigators"],
}


@pytest.mark.timeout(400)
def test_a_half_made_database_of_a_server_is_finished(
    server: postgresql.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VECTORIZE_HOME", "DAGSTER_HOME"):
        monkeypatch.setenv(name, "what _open_as_dagster_does sets is undone after the test")
    whole = on_a_server(server, tmp_path / "whole")
    _open_as_dagster_does(str(tmp_path / "whole"))
    for place, statements in HALF_MADE.items():
        home = tmp_path / place
        name = on_a_server(server, home, template=whole)
        with connected(server, name) as connection:
            for statement in statements:
                connection.execute(sa.text(statement))
        _open_as_dagster_does(str(home))
        assert made(server, name) == made(server, whole), place


def _die_before_the_events() -> None:
    """Open the instance; be killed before it makes the tables of events."""
    from dagster_postgres.event_log import PostgresEventLogStorage

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with patch.object(PostgresEventLogStorage, "__init__", die), open_instance(load_settings()):
        pass


@pytest.mark.timeout(400)
def test_a_killed_maker_of_a_servers_database_holds_nobody_up(server: postgresql.Server, home: Path) -> None:
    name = on_a_server(server, home)
    assert Fork(_die_before_the_events).wait(WAIT_SECONDS) == -signal.SIGKILL
    with connected(server, name) as connection:
        assert "event_logs" not in sa.inspect(connection).get_table_names()
    with open_instance(load_settings()) as instance:
        assert_empty(instance)
    assert len(made(server, name)[1]) == 1


def test_tables_that_the_operator_makes_are_left_to_them(server: postgresql.Server, home: Path) -> None:
    name = on_a_server(server, home, ", should_autocreate_tables: false")
    prepare(home / "dagster")
    with connected(server, name) as connection:
        assert sa.inspect(connection).get_table_names() == []


# ---- every way in at once


COLLECTIONS = ["gauge0", "gauge1"]


def begin_everything(folder: Path, home: Path) -> None:
    """Begin commands of every kind on a home at the same moment; each does what it is for."""
    commands: list[Command] = []
    for name in COLLECTIONS:
        (folder / name).mkdir(parents=True)
        (folder / name / "a.md").write_text(f"# Tide\n\nThe tide {name} is read every six minutes.")
        commands.append(["vectorize", "ingest", str(folder / name), "--collection", name])
    commands += [
        ["vectorize", "doctor"],
        ["vectorize", "collections"],
        ["vectorize", "requests"],
        ["dagster", "definitions", "validate", *DEFINITIONS],
        ["dagster", "job", "execute", *DEFINITIONS, "-j", "retention"],
        ["dagster", "instance", "info"],
    ]
    environment = {**os.environ, "VECTORIZE_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    environment |= {"DAGSTER_DISABLE_TELEMETRY": "yes"}
    for command, (code, said) in zip(commands, commands_together(commands, environment), strict=True):
        assert code == 0, f"{command}: {said[-3000:]}"


def assert_all_there(home: Path) -> None:
    """Each of the commands has its run, and its rows."""
    settings = load_settings({"VECTORIZE_HOME": str(home)})
    with open_instance(settings) as instance:
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.SUCCESS] * (len(COLLECTIONS) + 1)
    with closing(open_store(settings.store, settings.home)) as store:
        assert [list(store.count_by(name, "source_id").values()) for name in COLLECTIONS] == [[1]] * len(COLLECTIONS)
    assert open_to_others(home) == []


@pytest.mark.timeout(900)
def test_every_way_in_at_once(tmp_path: Path, exported_models: Path) -> None:
    """A new home, whose databases are files, is made whole. One time proves little: `make stress` does it again."""
    home = tmp_path / "home"
    (home / "dagster").mkdir(parents=True)
    (home / "dagster" / "dagster.yaml").symlink_to(home_module.DAGSTER_YAML)
    (home / "encoders").symlink_to(exported_models)
    begin_everything(tmp_path / "documents", home)
    assert heads(home / "dagster") == ONE_HEAD
    with closing(sqlite3.connect(home / "dagster" / "history" / "vectorize.db")) as connection:
        assert connection.execute(f"select * from {VERSION_TABLE}").fetchall() == [(HEAD,)]
    assert_all_there(home)


@pytest.mark.timeout(900)
def test_every_way_in_at_once_with_a_server(server: postgresql.Server, tmp_path: Path, exported_models: Path) -> None:
    home = tmp_path / "home"
    name = on_a_server(server, home)
    # The operator's own file: what lies below a closed folder keeps its mode.
    (home / "dagster" / "dagster.yaml").chmod(0o600)
    (home / "encoders").symlink_to(exported_models)
    begin_everything(tmp_path / "documents", home)
    assert len(made(server, name)[1]) == 1
    with connected(server, name) as connection:
        assert connection.execute(sa.text(f"select * from {VERSION_TABLE}")).scalars().all() == [HEAD]
    assert_all_there(home)


# ---- who may look into a home


def open_to_others(home: Path) -> list[str]:
    """What in a home others than its owner may read, enter or write, with its mode."""
    found = []
    for path in (home, *home.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if not path.is_symlink() and mode & 0o077:
            found.append(f"{mode:o} {path}")
    return found


@pytest.fixture
def command(vectorize_here: Vectorize) -> Callable[..., str]:
    """Carries out a command in this process, under the usual mask; returns what it logs."""
    os.umask(0o022)

    def call(*arguments: object) -> str:
        done = vectorize_here(*arguments)
        assert done.code == 0, done.err
        return done.err

    return call


def test_what_is_made_is_closed_to_others(home: Path, tmp_path: Path, command: Callable[..., str]) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# Tide\n\nThe tide gauge is read every six minutes.")
    command("ingest", tmp_path / "docs")
    command("requests")
    assert open_to_others(home) == []
    assert len(list(home.rglob("*"))) > 20, "that is not all of a home"


def test_an_open_home_is_closed_and_said_once(home: Path, command: Callable[..., str]) -> None:
    home.chmod(0o755)
    (home / "dagster").mkdir()
    (home / "dagster").chmod(0o777)
    (home / "dagster" / "dagster.yaml").symlink_to(home_module.DAGSTER_YAML)
    linked = (home / "encoders").stat().st_mode
    first, second = command("requests"), command("requests")
    (line,) = [line for line in first.splitlines() if "could read" in line]
    assert f"{home}, {home / 'dagster'}: closed to them" in line
    assert "could read" not in second
    assert open_to_others(home) == []
    assert (home / "encoders").stat().st_mode == linked, "a link was followed"


def test_bare_dagster_closes_an_open_home_too(home: Path) -> None:
    """And what it makes itself, in a process of its own under the usual mask."""
    home.chmod(0o755)
    (home / "dagster").mkdir()
    (home / "dagster" / "dagster.yaml").symlink_to(home_module.DAGSTER_YAML)
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "job", "execute", *DEFINITIONS, "-j", "retention"],
        env={**os.environ, "DAGSTER_HOME": str(home / "dagster")},
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
        umask=0o022,
    )
    assert done.returncode == 0, done.stderr
    assert "closed to them" in done.stderr
    assert open_to_others(home) == []


def test_a_home_that_is_shared_on_purpose_stays_as_it_is(
    home: Path, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home.chmod(0o2775)
    monkeypatch.setenv("VECTORIZE_HOME_SHARED", "true")
    assert "closed" not in command("requests")
    assert stat.S_IMODE(home.stat().st_mode) == 0o2775
    assert stat.S_IMODE((home / "dagster").stat().st_mode) & 0o055 == 0o055


def test_a_folder_with_things_of_others_is_not_closed_as_a_whole(home: Path, command: Callable[..., str]) -> None:
    home.chmod(0o755)
    for name in ("of somebody else", "manifests"):
        (home / name).mkdir()
        (home / name).chmod(0o755)
    command("requests")
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    assert stat.S_IMODE((home / "of somebody else").stat().st_mode) == 0o755
    ours = [home / "dagster", home / "manifests"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in ours] == [0o700, 0o700]
