"""The tables come up to date at the first start of a version, once, whole, and with every row: SQLite and PostgreSQL.

A database of before there were migrations is one that the code of that time made (tests/state_of_earlier_versions).
"""

import importlib
import pkgutil
import re
import shutil
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml
from alembic.autogenerate import compare_metadata

from tests.attacks.together import PROCESSES, together
from tests.servers.postgresql import Server
from tests.state.earlier import COMMITS, assert_every_row, described, load
from tests.state.openings import noted, open_there_as_later_version, start, use_further_migrations
from tests.state.rows import MakeSettings, row
from vectorize_pipelines import state
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.runs.instance import open_instance
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state import home as home_module
from vectorize_pipelines.state import migrations
from vectorize_pipelines.state.database import Database, database_url, engine_options, metadata
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.migrations import runner
from vectorize_pipelines.state.migrations.versions import v0001_tables

for _module in pkgutil.iter_modules(state.__path__):  # each that has a table adds it to `metadata`
    importlib.import_module(f"{state.__name__}.{_module.name}")


@contextmanager
def connected(settings: Settings) -> Iterator[sa.Connection]:
    """A connection to the database of the settings that knows nothing of migrations."""
    url = database_url(settings)
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool, **engine_options(url))
    with engine.connect() as connection:
        yield connection


def query(settings: Settings, statement: str) -> list[tuple[object, ...]]:
    with connected(settings) as connection:
        return [tuple(each) for each in connection.exec_driver_sql(statement)]


def version(settings: Settings) -> list[tuple[object, ...]]:
    return query(settings, "select version_num from vectorize_schema_version")


@pytest.fixture
def later_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "FOLDERS", migrations.FOLDERS)
    monkeypatch.setattr(migrations, "HEAD", migrations.HEAD)
    use_further_migrations()


# ---- migrations and tables are the same


def test_migrations_and_tables_agree(new_installation: MakeSettings) -> None:
    """What the migrations make is what the tables say, in Alembic's eyes and in those of the database."""
    migrated, made = new_installation(), new_installation()
    with closing(Database.open(migrated)) as database, database.read() as connection:
        context = runner.migration_context(connection, runner.scripts(), compare_type=True, compare_server_default=True)
        assert compare_metadata(context, metadata) == []
        found = described(connection)
    Path(database_url(made).database or "").parent.mkdir(parents=True, exist_ok=True)
    with connected(made) as connection:
        metadata.create_all(connection)
        assert described(connection) == found
    assert len({name for name, *_ in found} | {str(each[1]) for each in found}) > len(metadata.tables)


def test_the_newest_migration_is_the_one_that_is_named() -> None:
    scripts = runner.scripts()
    assert scripts.get_heads() == [migrations.HEAD]
    assert [script.revision for script in scripts.walk_revisions()][-1] == "0001"


@pytest.fixture
def first_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make this process one of the version that had the first migration alone."""
    folder = tmp_path / "migrations" / "versions"
    folder.mkdir(parents=True)
    shutil.copy(Path(v0001_tables.__file__), folder)
    monkeypatch.setattr(migrations, "FOLDERS", (folder,))
    monkeypatch.setattr(migrations, "HEAD", "0001")


@pytest.mark.usefixtures("first_version")
@pytest.mark.parametrize("commit", COMMITS)
def test_the_first_migration_makes_what_there_was_before(new_installation: MakeSettings, commit: str) -> None:
    new, earlier = new_installation(), new_installation()
    load(earlier, commit)
    with closing(Database.open(new)) as database, database.read() as connection:
        found = described(connection)
    with connected(earlier) as connection:
        assert described(connection) == found


# ---- a database of before there were migrations


@pytest.mark.parametrize("commit", COMMITS)
def test_a_database_of_before_is_brought_up_to_date_with_every_row(new_installation: MakeSettings, commit: str) -> None:
    earlier, new = new_installation(), new_installation()
    load(earlier, commit)
    for each in (earlier, new):
        Database.open(each).close()
    assert version(earlier) == [(migrations.HEAD,)]
    with connected(earlier) as connection, connected(new) as other:
        assert described(connection) == described(other)
    assert_every_row(earlier)


@pytest.mark.usefixtures("later_version")
@pytest.mark.parametrize("commit", COMMITS)
def test_a_database_of_before_comes_to_a_later_version_with_every_row(installation: Settings, commit: str) -> None:
    load(installation, commit)
    Database.open(installation).close()
    assert version(installation) == [("9001",)]
    assert set(query(installation, "select note from vectorize_requests")) == {("of vectorize.text",)}
    assert_every_row(installation)


def test_a_part_of_the_tables_is_completed(new_installation: MakeSettings) -> None:
    """Each table was made when it was first used, and a process may have been killed before it made an index."""
    earlier, new = new_installation(), new_installation()
    load(earlier)
    with connected(earlier) as connection:
        for statement in ("drop table vectorize_findings", "drop index vectorize_requests_by_state"):
            connection.exec_driver_sql(statement)
    for each in (earlier, new):
        Database.open(each).close()
    with connected(earlier) as connection, connected(new) as other:
        assert described(connection) == described(other)
    assert query(earlier, "select count(*) from vectorize_requests") != [(0,)]


def test_a_process_of_the_version_before_goes_on(installation: Settings) -> None:
    """It knows nothing of the newer columns: what they have stays, and of its own rows they have nothing."""
    columns = [
        *("request_id", "state", "modality", "collection", "submitted_us", "started_us", "finished_us", "run_id"),
        *("topic", "partition", "offset", "timestamp_ms", "items", "vectors", "tokens", "error_class", "error_message"),
    ]
    names = ", ".join(f'"{name}"' for name in columns)
    replaced = ", ".join(f'"{name}" = excluded."{name}"' for name in columns[1:])
    with closing(RequestLedger.open(installation)) as ledger:
        known = replace(row("known", RequestState.PROCESSING), task_type="t", done=1, known=2, metadata={"a": 1})
        ledger.record([known])
        with connected(installation) as connection:
            for request_id in ("known", "new"):
                values = (
                    f"'{request_id}', 'completed', 'text', 'texts', 1, 1, 1, 'run', 't', 1, 0, 0, 2, 3, 4, null, null"
                )
                connection.exec_driver_sql(
                    f"insert into vectorize_requests ({names}) values ({values}) "
                    f"on conflict (request_id) do update set {replaced}"
                )
        after, new = ledger.get("known"), ledger.get("new")
    assert after is not None
    assert (after.state, after.task_type, after.metadata) == (RequestState.COMPLETED, "t", {"a": 1})
    assert new is not None
    assert (new.state, new.task_type, new.done, new.known, new.metadata) == (RequestState.COMPLETED, None, 0, 0, None)


def test_a_table_of_somebody_else_is_told_and_left(installation: Settings) -> None:
    file = database_url(installation).database
    Path(file or "").parent.mkdir(parents=True, exist_ok=True)
    with connected(installation) as connection:
        connection.exec_driver_sql("create table vectorize_callbacks (task_id text, url text)")
        before = described(connection)
    with pytest.raises(LedgerError, match=r"has a table vectorize_callbacks .* lacks topic, .*rename it"):
        RequestLedger.open(installation)
    with connected(installation) as connection:
        assert described(connection) == before
        assert not sa.inspect(connection).has_table(migrations.VERSION_TABLE)


# ---- a later version


@pytest.mark.usefixtures("later_version")
def test_a_new_database_gets_every_migration(installation: Settings) -> None:
    with closing(RequestLedger.open(installation)) as ledger:
        ledger.record([row()])
    assert version(installation) == [("9001",)]
    assert query(installation, "select note from vectorize_requests") == [("",)]


def test_a_database_that_is_newer_is_told_and_left(installation: Settings) -> None:
    later = start("open_there_as_later_version", noted(installation))
    assert later.returncode == 0, later.stderr
    with connected(installation) as connection:
        connection.exec_driver_sql("insert into vectorize_findings values ('of', 'the', 'later', 'version')")
    url = database_url(installation)
    with connected(installation) as connection:
        before = described(connection)
    content = Path(url.database or "").read_bytes() if url.get_backend_name() == "sqlite" else b""
    for _ in range(2):
        with pytest.raises(LedgerError) as caught:
            RequestLedger.open(installation)
        said = str(caught.value)
        assert "is of a newer version of this project: its schema is 9001" in said
        assert f"knows {migrations.HEAD}" in said
        assert "nothing was written. Install the newer version again, or restore the backup" in said
        assert (url.database or "") in said
        assert str(url.password) not in said
    assert version(installation) == [("9001",)]
    assert query(installation, "select subject from vectorize_findings") == [("version",)]
    with connected(installation) as connection:
        assert described(connection) == before
    if content:
        assert Path(url.database or "").read_bytes() == content


@pytest.mark.usefixtures("later_version")
@pytest.mark.parametrize("of_before", [False, True], ids=["new", "of before"])
def test_a_migration_that_fails_changes_nothing(
    installation: Settings, monkeypatch: pytest.MonkeyPatch, of_before: bool
) -> None:
    if of_before:
        load(installation)
    monkeypatch.setenv("FURTHER_MIGRATION", "failed")
    with pytest.raises(LedgerError, match="vectorize_nowhere"):
        RequestLedger.open(installation)
    with connected(installation) as connection:
        assert not sa.inspect(connection).has_table(migrations.VERSION_TABLE)
        assert bool(described(connection)) is of_before
        assert "note" not in str(described(connection)).replace("noted_us", "")
    monkeypatch.delenv("FURTHER_MIGRATION")
    RequestLedger.open(installation).close()
    assert version(installation) == [("9001",)]


# ---- kills


@pytest.mark.parametrize("of_before", [False, True], ids=["new", "of before"])
@pytest.mark.slow
def test_a_killed_upgrade_is_completed_by_the_next_start(installation: Settings, of_before: bool) -> None:
    if of_before:
        load(installation)
    home = noted(installation)
    killed = start("open_there_as_later_version", home, FURTHER_MIGRATION="killed")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with connected(installation) as connection:
        assert not sa.inspect(connection).has_table(migrations.VERSION_TABLE), "it was all or nothing"
    done = start("open_there_as_later_version", home)
    assert done.returncode == 0, done.stderr
    assert version(installation) == [("9001",)]
    assert query(installation, "select * from vectorize_applied") == [("9001",)]
    if of_before:
        assert len(query(installation, "select note from vectorize_requests where note = 'of vectorize.text'")) > 3


def test_a_process_that_is_killed_while_it_makes_the_tables(installation: Settings) -> None:
    home = noted(installation)
    killed = start("die_before_the_version_is_written", home)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with connected(installation) as connection:
        assert described(connection) == []
    with closing(RequestLedger.open(installation)) as ledger:
        ledger.record([row()])
    assert version(installation) == [(migrations.HEAD,)]


# ---- many at once


@pytest.mark.timeout(600)
def test_many_processes_upgrade_once(new_installation: MakeSettings) -> None:
    """New homes and those of before, each opened by all processes at the same moment."""
    new, of_before = [new_installation() for _ in range(3)], [new_installation() for _ in range(3)]
    for each in of_before:
        load(each)
    attacks = [(open_there_as_later_version, noted(each)) for each in (*new, *of_before)]
    assert together(attacks) == []
    for each in (*new, *of_before):
        assert query(each, "select * from vectorize_applied") == [("9001",)]
        assert version(each) == [("9001",)]
    noted_rows = [query(each, "select count(*) from vectorize_requests where note > ''") for each in of_before]
    assert noted_rows == [query(of_before[0], "select count(*) from vectorize_requests")] * len(of_before)


def test_threads_that_open_different_databases(new_installation: MakeSettings) -> None:
    """Nothing of an upgrade is shared by a process: Dagster migrates databases of its own meanwhile."""
    installations = [new_installation() for _ in range(PROCESSES)]
    barrier, errors = threading.Barrier(len(installations)), list[BaseException]()

    def open_it(settings: Settings) -> None:
        barrier.wait()
        try:
            RequestLedger.open(settings).close()
        except BaseException as error:  # noqa: BLE001 -- the test says what it was
            errors.append(error)

    threads = [threading.Thread(target=open_it, args=(each,)) for each in installations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [version(each) for each in installations] == [[(migrations.HEAD,)]] * len(installations)


# ---- what it costs, and whom it does not disturb


def test_a_database_that_is_up_to_date_is_opened_without_alembic(installation: Settings) -> None:
    home = noted(installation)
    said = [start("open_there_and_say_what_was_imported", home) for _ in range(2)]
    assert [each.stdout for each in said] == ["alembic mako\n", "\n"], said


def test_dagsters_versions_in_the_same_database_are_left_alone(postgresql: Server, tmp_path: Path) -> None:
    """Whoever is the first there: the project's tables, or Dagster's."""
    found = []
    for ours_first in (True, False):
        name = f"shared_{ours_first}".lower()
        with connected(load_settings({}, home=tmp_path, ledger={"url": postgresql.url()})) as connection:
            connection.exec_driver_sql(f"create database {name}")
        settings = load_settings({}, home=tmp_path / name)
        (settings.home / "dagster").mkdir(parents=True)
        config = yaml.safe_load(home_module.DAGSTER_YAML.read_text())
        config["storage"] = {"postgres": {"postgres_url": postgresql.url(name)}}
        (settings.home / "dagster" / "dagster.yaml").write_text(yaml.safe_dump(config))
        if ours_first:
            RequestLedger.open(settings).close()
        with open_instance(settings) as instance:
            assert instance.get_runs_count() == 0
        RequestLedger.open(settings).close()
        with open_instance(settings) as instance:
            assert instance.get_runs_count() == 0
        assert version(settings) == [(migrations.HEAD,)]
        found.append(query(settings, "select version_num from alembic_version"))
    assert found[0] == found[1]
    assert re.fullmatch("[0-9a-f]+", str(found[0][0][0]))


def test_a_look_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    settings = load_settings({}, home=tmp_path)
    Database.open(settings).close()
    with closing(sqlite3.connect(database_url(settings).database or "", isolation_level=None)) as other:
        other.execute("begin immediate")
        Database.open(settings).close()
