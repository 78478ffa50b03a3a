"""Files that cost a parser its time, its memory or its life: they are not tried for ever."""

import sqlite3
from concurrent.futures import Future
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.files.installation import COLLECTION, DAY, Installation, install, paragraphs
from vectorize_pipelines.documents.errors import ParserCrashedError, ParserMemoryError, ParseTimeoutError
from vectorize_pipelines.documents.pool import ParserPool
from vectorize_pipelines.errors import ItemError, UnreadableFileError
from vectorize_pipelines.pipeline.files import documents as documents_module
from vectorize_pipelines.pipeline.files.documents import compare_corpus
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.manifest import ManifestEntry, open_manifest
from vectorize_pipelines.state.manifest.sqlite import SQLiteManifest


class FailingPool(ParserPool):
    """Fails for files whose name says so, as a parser process would; counts the tries."""

    error: ItemError = ParseTimeoutError("took longer than 120 s to parse")
    tries = 0

    def submit(self, uri: str, *arguments: Any, **further: Any) -> "Future[Any]":
        if "bad" not in uri:
            return super().submit(uri, *arguments, **further)
        FailingPool.tries += 1
        failed: Future[Any] = Future()
        failed.set_exception(FailingPool.error)
        return failed


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.setattr(documents_module, "ParserPool", FailingPool)
    monkeypatch.setattr(FailingPool, "tries", 0)
    monkeypatch.setattr(FailingPool, "error", ParseTimeoutError("took longer than 120 s to parse"))
    made = install(tmp_path / "installation")
    made.write("good.md", paragraphs(1))
    made.write("bad.md", paragraphs(2))
    return made


def tries(installation: Installation, **changes: Any) -> int:
    """How often the file is read in a run; it is listed as failed in any case."""
    before = FailingPool.tries
    stream = installation.run(**changes)
    assert [Path(failure.source_id).name for failure in stream.failures] == ["bad.md"]
    return FailingPool.tries - before


@pytest.mark.parametrize("error", [ParseTimeoutError, ParserMemoryError, ParserCrashedError])
def test_a_file_that_costs_a_parser_is_tried_twice_and_then_waits_for_a_change(
    installation: Installation, error: type[ItemError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailingPool, "error", error("costs too much"))
    assert [tries(installation) for _ in range(4)] == [1, 1, 0, 0]
    (failure,) = installation.run().failures
    assert "tried 2 times" in failure.message
    assert "--reconcile" in failure.message
    installation.write("bad.md", paragraphs(3), DAY + timedelta(hours=1))
    assert [tries(installation) for _ in range(3)] == [1, 1, 0]


def test_it_is_tried_again_when_the_settings_that_bound_it_change(installation: Installation) -> None:
    assert [tries(installation) for _ in range(3)] == [1, 1, 0]
    for changes in ({"timeout_seconds": 500.0}, {"timeout_seconds": 500.0, "memory_bytes": 8 * 2**30}):
        given = load_settings(
            {},
            home=str(installation.settings.home),
            cache={"enabled": "off"},
            documents={"chunk_tokens": 32, "overlap_tokens": 0, **changes},
        )
        installation.settings = given
        assert [tries(installation) for _ in range(3)] == [1, 1, 0]


def test_it_is_tried_again_when_asked(installation: Installation) -> None:
    assert [tries(installation) for _ in range(3)] == [1, 1, 0]
    assert tries(installation, force=True) == 1
    assert tries(installation) == 0
    assert tries(installation, reconcile=True) == 1
    assert [tries(installation) for _ in range(2)] == [1, 0]


def test_the_sensor_finds_nothing_to_do_then(installation: Installation) -> None:
    settings = load_settings(
        {},
        home=str(installation.settings.home),
        corpus={"path": str(installation.folder)},
        documents={"chunk_tokens": 32, "overlap_tokens": 0},
    )
    tries(installation)
    assert compare_corpus(settings).changed == 1
    tries(installation)
    assert not compare_corpus(settings).changed


def test_a_file_that_is_mended_is_embedded_and_counted_anew(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tries(installation) == 1
    with monkeypatch.context() as patched:
        patched.setattr(FailingPool, "submit", ParserPool.submit)
        assert not installation.run().failures
    installation.write("bad.md", paragraphs(3), DAY + timedelta(hours=1))
    assert [tries(installation) for _ in range(3)] == [1, 1, 0]


def test_what_costs_nothing_is_tried_at_every_run(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FailingPool, "error", UnreadableFileError("cannot be read: Permission denied"))
    assert [tries(installation) for _ in range(4)] == [1, 1, 1, 1]


def test_a_file_that_really_times_out_is_given_up(tmp_path: Path) -> None:
    """By a parser process that is stopped after its time."""
    made = install(tmp_path / "installation")
    made.settings = load_settings(
        {}, home=str(made.settings.home), cache={"enabled": "off"}, documents={"timeout_seconds": 0.05}
    )
    made.write("bad.md", "# " + "[" * 400_000)
    kinds = [[failure.error_class for failure in made.run().failures] for _ in range(3)]
    assert kinds == [["ParseTimeoutError"]] * 3
    with closing(open_manifest(made.settings, COLLECTION)) as manifest:
        (entry,) = manifest.entries()
    assert (entry.attempts, entry.retryable) == (2, False)


#: As the first version wrote it.
FIRST_VERSION = """
create table files (
    source_id text primary key, size integer not null, modified_ns integer not null, version text not null,
    content_hash text not null, fingerprint text not null, rows integer not null, error_class text not null,
    error_message text not null, retryable integer not null
) without rowid;
create table unreported_days (day text primary key) without rowid;
insert into files values ('/d/a.md', 4, 17, '', 'hash', 'print', 3, '', '', 0);
insert into files values ('/d/b.md', 4, 17, '', '', 'print', 0, 'ParseTimeoutError', 'took longer', 1);
insert into unreported_days values ('2024-01-01');
pragma user_version = 1;
"""


def test_a_manifest_of_the_second_version_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(FIRST_VERSION)
        connection.execute("alter table files add column attempts integer not null default 0")
        connection.execute("pragma user_version = 2")
    with closing(SQLiteManifest.open(file)) as manifest:
        assert [entry.notices for entry in manifest.entries()] == ["", ""]
        assert manifest.unreported_days() == {"2024-01-01"}


def test_a_manifest_of_the_first_version_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(FIRST_VERSION)
    first, second = SQLiteManifest.open(file), SQLiteManifest.open(file)
    for manifest in (first, second):
        assert list(manifest.entries()) == [
            ManifestEntry("/d/a.md", 4, 17, "", "hash", "print", 3),
            ManifestEntry("/d/b.md", 4, 17, "", "", "print", 0, "ParseTimeoutError", "took longer", True),
        ]
        assert manifest.unreported_days() == {"2024-01-01"}
    tried = ManifestEntry("/d/b.md", 4, 17, "", "", "print", 0, "ParseTimeoutError", "took longer", False, 2)
    first.record([tried])
    first.close()
    second.close()
    with closing(SQLiteManifest.open(file)) as manifest:
        assert tried in manifest.entries()
    assert {entry.name for entry in tmp_path.iterdir()} <= {"m.sqlite", "m.sqlite.lock"}
