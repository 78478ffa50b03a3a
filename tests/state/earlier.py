"""Databases and a home that an earlier version of the project made: see tests/state_of_earlier_versions."""

import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.attempts import RunAttempts, Spot
from vectorize_pipelines.state.callbacks import CallbackOutbox, CallbackState, CallbackStatus
from vectorize_pipelines.state.database import database_url
from vectorize_pipelines.state.findings import Findings
from vectorize_pipelines.state.generations import Generations, State
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.versions import SourceVersions
from vectorize_pipelines.state.write_journal import WriteJournal

FOLDER = Path(__file__).parents[1] / "state_of_earlier_versions"
#: The commit before there were migrations.
COMMIT = "0e2b79b"
#: The last commit of each version of the tables before the present one.
COMMITS = (COMMIT, "e12e4f5")
_NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
_BASE_MS = 1_793_534_400_000


def load(settings: Settings, commit: str = COMMIT) -> None:
    """Put the database that an earlier version made to where the settings have theirs, which is empty."""
    url = database_url(settings)
    if url.get_backend_name() == "sqlite":
        assert url.database is not None
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FOLDER / commit / "vectorize.db", url.database)
        return
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        cursor = connection.connection.cursor()  # SQLAlchemy would look for parameters in it
        cursor.execute((FOLDER / commit / "vectorize.sql").read_text(encoding="utf-8"))


@contextmanager
def unpacked_home(folder: Path, commit: str = COMMIT) -> Iterator[tuple[Path, Path]]:
    """Yield the home that an earlier version made from two documents, in `folder`, and the folder of these.

    It is known by its whole path: the documents lie where they lay then, by turns, until the end.
    """
    place = Path("/tmp", f"vectorize-{commit}")
    with FileLock(f"{place}.lock"):
        with tarfile.open(FOLDER / commit / "home.tar.gz") as archive:
            members = archive.getmembers()
            archive.extractall(folder, [each for each in members if each.name.startswith("home")], filter="tar")
            archive.extractall(place, [each for each in members if each.name.startswith("corpus")], filter="tar")
        try:
            yield folder / "home", place / "corpus"
        finally:
            shutil.rmtree(place)


def assert_every_row(settings: Settings) -> None:
    """Each table of the database has what the earlier version wrote, as the classes of this version read it."""
    _assert_requests(settings)
    _assert_versions(settings)
    _assert_generations(settings)
    with closing(CallbackOutbox.open(settings)) as outbox:
        assert outbox.status("request-2") == CallbackStatus(CallbackState.WAITING, 0, None)
        (row,) = outbox.claim(9, 60)
        event = ResultEvent("request-2", RequestState.COMPLETED, "texts", 2, None, "run", _NOW)
        assert (row.url, ResultEvent.from_json(row.body.encode())) == ("https://example.org/hook", event)
    with closing(Findings.open(settings)) as findings:
        assert findings.of_check("corpus", "canary_recall") == {"texts": {"source-1", "source-2"}}
    with closing(WriteJournal.open(settings)) as journal:
        assert journal.left("texts_1", "files") == ["row-1", "row-2"]
    place = ("vectorize.text", 0)
    with closing(RunAttempts.open(settings, "drain", "the next run")) as attempts:
        attempts.begin({place: 0}, {place: 9})
        assert [each.run_id for each in attempts.deaths_alone(Spot(place, 5, _BASE_MS + 5))] == ["run-that-dies"]


def _assert_requests(settings: Settings) -> None:
    with closing(RequestLedger.open(settings)) as ledger:
        assert len(ledger.page().rows) == len(RequestState)
        for n, state in enumerate(RequestState):
            row = ledger.get(f"request-{n}")
            assert row is not None
            assert (row.state, row.offset, row.vectors, row.tokens) == (state, n, n, 7)
            assert row.submitted_at == _NOW + timedelta(seconds=n)
            assert row.error_message == ("größer als erlaubt" if state is RequestState.FAILED else None)
            assert (row.task_type, row.done, row.known, row.metadata) == (None, 0, 0, None)


def _assert_versions(settings: Settings) -> None:
    with closing(SourceVersions.open(settings)) as versions:
        known = versions.known("texts", ["source-1", "source-2", "source-3", "source-4"])
        assert {name: (each.version, each.deleted) for name, each in known.items()} == {
            f"source-{n}": ((_BASE_MS + n, "vectorize.text", 0, n), n > 1) for n in (1, 2, 3)
        }


def _assert_generations(settings: Settings) -> None:
    with closing(Generations.open(settings)) as generations:
        kept, live = generations.of("texts")
        assert (kept.physical, kept.state, kept.keep_until) == ("texts_0", State.KEPT, _NOW + timedelta(days=7))
        assert (live.physical, live.state, live.fingerprint) == ("texts_1", State.LIVE, "fingerprint-1")
        assert (live.created, live.changed) == (_NOW + timedelta(days=1), _NOW + timedelta(days=2))


def described(connection: sa.Connection) -> list[tuple[object, ...]]:
    """Return the project's tables, columns and indexes, as the database itself describes them.

    SQLite keeps the text of a statement as it was sent, and adds a later column to it: spaces and line ends differ.
    """
    if connection.dialect.name == "sqlite":
        queries = ["select type, name, sql from sqlite_master where tbl_name like 'vectorize%' order by 1, 2"]
    else:
        queries = [
            "select table_name, column_name, ordinal_position, column_default, is_nullable, data_type, collation_name "
            "from information_schema.columns where table_name like 'vectorize%%' order by 1, 3",
            "select tablename, indexname, indexdef from pg_indexes where tablename like 'vectorize%%' order by 1, 2",
        ]
    found = [
        tuple(" ".join(each.split()) if isinstance(each, str) else each for each in row)
        for query in queries
        for row in connection.exec_driver_sql(query)
    ]
    return [row for row in found if "vectorize_schema_version" not in str(row)]


def rows_of(file: Path, table: str) -> list[tuple[object, ...]]:
    """Return what a SQLite file has in a table."""
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(f"select * from {table}").fetchall()
