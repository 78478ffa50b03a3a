"""Documents that kill the process of a run, or fail it in a way that nobody foresaw, stop no folder."""

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.killer_folder_run import SETTINGS, DeadlyEncoder, installation_in, run
from tests.attacks.killer_run import KILLING, RAISING, RUN_SECONDS, encode, end_once_paused
from tests.commands import Vectorize
from tests.forks import Fork
from tests.pipeline.files.installation import COLLECTION, Installation, paragraphs
from vectorize_pipelines.errors import DamagedStateError, StateError
from vectorize_pipelines.pipeline.files.attempted import FileAttempts
from vectorize_pipelines.pipeline.files.documents import corpus_source
from vectorize_pipelines.sources.files import SourceFile
from vectorize_pipelines.state import home
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.state.manifest import open_manifest
from vectorize_pipelines.state.manifest import sqlite as manifest_file_module

GOOD = 20
SOME_FAILED = 6


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """A folder with good documents."""
    folder = tmp_path / "docs"
    folder.mkdir()
    made = installation_in(tmp_path / "home", folder)
    for n in range(GOOD):
        made.write(f"good-{n:02}.md", paragraphs(n, n + 100))
    return made


def start(installation: Installation, mode: str = "deadly", *, force: bool = False) -> Fork:
    home = installation.settings.home
    home.mkdir(exist_ok=True)
    return Fork(run, home, installation.folder, mode, force, err=home / "child.log")


def run_until_done(installation: Installation, most: int) -> tuple[int, dict[str, dict[str, Any]]]:
    """Starts runs until one comes to its end: how many died before, at most `most`, and the failures by name."""
    home = installation.settings.home
    for deaths in range(most + 1):
        status = start(installation).wait(RUN_SECONDS)
        if status == 0:
            failures = json.loads((home / "failures.json").read_text())
            return deaths, {Path(failure["source_id"]).name: failure for failure in failures}
        log = (home / "child.log").read_text(errors="replace")
        assert status == -signal.SIGKILL, f"a run ended with {status}: {log[-3000:]}"
    pytest.fail(f"the folder is stopped: {most + 1} runs died of it")


def names(installation: Installation) -> set[str]:
    return {name for name, _ in installation.rows()}


def good_names() -> set[str]:
    return {f"good-{n:02}.md" for n in range(GOOD)}


@pytest.mark.timeout(900)
def test_killers_are_set_aside_until_they_change(installation: Installation) -> None:
    installation.write("once-good.md", paragraphs(500))
    assert run_until_done(installation, 0) == (0, {})
    installation.write("once-good.md", f"{KILLING} now")
    installation.write("killer.md", f"{paragraphs(7)}\n\n{KILLING} from the beginning")
    installation.write("good-00.md", paragraphs(0, 600))
    deaths, failures = run_until_done(installation, 6)
    assert deaths == 5, "one with others in hand, and two alone for each"
    assert {name: failure["error_class"] for name, failure in failures.items()} == {
        "once-good.md": "KilledRunsError",
        "killer.md": "KilledRunsError",
    }
    assert "--force" in failures["killer.md"]["message"]
    assert "embedding: its process died" in failures["killer.md"]["message"]
    assert names(installation) == good_names() | {"once-good.md"}, "the rows of the earlier version stay"
    assert ("good-00.md", 1) in installation.rows()

    assert run_until_done(installation, 0) == (0, failures), "they are left alone, and listed"
    installation.write("killer.md", paragraphs(8))
    assert set(run_until_done(installation, 0)[1]) == {"once-good.md"}
    assert "killer.md" in names(installation)
    assert start(installation, force=True).wait(RUN_SECONDS) == -signal.SIGKILL, "with --force it is tried again"


def test_errors_that_nobody_foresaw_count_as_deaths(installation: Installation) -> None:
    installation.write("wrong.md", RAISING)
    installation.encoder = DeadlyEncoder(encode)
    for _ in range(3):
        with pytest.raises(ValueError, match="an index out of range"):
            installation.run()
    (failure,) = installation.run().failures
    assert Path(failure.source_id).name == "wrong.md"
    assert "embedding: ValueError: an index out of range" in failure.message
    assert names(installation) == good_names()


def test_errors_that_any_file_would_meet_set_nothing_aside(installation: Installation) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("CUDA error: the device is gone")

    installation.write("empty.pdf", "no document, which fails with an error of its own")
    installation.encoder = DeadlyEncoder(fail)
    for _ in range(5):
        with pytest.raises(RuntimeError):
            installation.run()
    installation.encoder = DeadlyEncoder(encode)
    assert {Path(failure.source_id).name for failure in installation.run().failures} == {"empty.pdf"}
    assert names(installation) == good_names()


def test_files_with_errors_take_turns_until_one_shows_that_the_others_are_at_fault(installation: Installation) -> None:
    installation.run()
    for name in ("a-wrong.md", "b-wrong.md", "c-good.md"):
        installation.write(name, paragraphs(9) if "good" in name else RAISING)
    installation.encoder = DeadlyEncoder(encode)
    for _ in range(6):
        with pytest.raises(ValueError, match="an index out of range"):
            installation.run()
    assert "c-good.md" in names(installation)
    # Of the one that is left any file might meet the error, for all that a run knows, until another one is stored.
    installation.write("d-good.md", paragraphs(10))
    for _ in range(2):
        with pytest.raises(ValueError, match="an index out of range"):
            installation.run()
    assert {Path(failure.source_id).name for failure in installation.run().failures} == {"a-wrong.md", "b-wrong.md"}
    assert names(installation) == good_names() | {"c-good.md", "d-good.md"}


@pytest.mark.timeout(900)
def test_runs_that_are_killed_or_told_to_end_from_outside_set_nothing_aside(installation: Installation) -> None:
    for number in range(4):
        child = start(installation, "pausing")
        end_once_paused(child, installation.settings.home, signal.SIGTERM if number == 0 else signal.SIGKILL)
        died = (installation.settings.home / "child.log").read_text(errors="replace")
        assert ("died" in died) == (number > 1), "one that ended in order left nothing to be told"
    assert run_until_done(installation, 0) == (0, {})
    assert names(installation) == good_names()


@contextmanager
def noting(installation: Installation, run_id: str) -> Iterator[FileAttempts]:
    """Yield the notes of a run, which dies at the end of the block unless it has closed them."""
    with closing(open_manifest(installation.settings, COLLECTION)) as manifest:
        yield FileAttempts.open(manifest, run_id, ExclusiveLock())


def in_hand(installation: Installation) -> tuple[Path, SourceFile]:
    """The manifest, in which a run that died notes a file as alone in hand; the file as a listing has it."""
    installation.run()
    listed = corpus_source(installation.settings, str(installation.folder)).list().files
    source_id = os.path.realpath(installation.folder / "good-00.md")
    with noting(installation, "dead") as attempts:
        attempts.note_alone(listed[source_id], "embedding")
    return home.manifest_file(installation.settings, COLLECTION), listed[source_id]


def test_a_file_is_the_same_wherever_links_may_lead(installation: Installation) -> None:
    _, file = in_hand(installation)
    with noting(installation, "next") as attempts, closing(attempts):
        for within in (None, file.within, "/elsewhere"):
            suspects = attempts.suspects([replace(file, within=within)])
            assert [suspicion.deaths for suspicion in suspects.values()] == [["run dead, embedding: its process died"]]
        assert not attempts.suspects([replace(file, size=file.size + 1)])


def test_a_full_disk_is_told_and_held_against_no_file(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = in_hand(installation)
    connect_before = manifest_file_module.connect

    def nearly_full(place: Path) -> sqlite3.Connection:
        connection = connect_before(place)
        (pages,) = connection.execute("pragma page_count").fetchone()
        connection.execute(f"pragma max_page_count = {pages}")
        return connection

    for n in range(2000):
        installation.write(f"further-{n:04}.md", "a line")
    with monkeypatch.context() as full:
        full.setattr(manifest_file_module, "connect", nearly_full)
        with pytest.raises(StateError, match="no space is left"):
            installation.run()
    with noting(installation, "next") as attempts, closing(attempts):
        assert [len(suspicion.deaths) for suspicion in attempts.suspects([file]).values()] == [1]


def test_a_damaged_table_of_attempts_is_made_again(
    installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, _ = in_hand(installation)
    with closing(sqlite3.connect(manifest)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
        (root,) = connection.execute("select rootpage from sqlite_master where name = 'attempts'").fetchone()
        (size,) = connection.execute("pragma page_size").fetchone()
    with manifest.open("r+b") as opened:
        opened.seek((root - 1) * size)
        opened.write(b"\xff" * size)
    assert not installation.run().failures
    assert "put aside" in caplog.text
    assert names(installation) == good_names()


def test_damage_that_is_met_while_a_run_goes_on_is_told_and_the_next_run_goes_on(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, file = in_hand(installation)
    with noting(installation, "next") as attempts:
        with closing(sqlite3.connect(manifest)) as connection:
            (root,) = connection.execute("select rootpage from sqlite_master where name = 'attempts'").fetchone()
            (size,) = connection.execute("pragma page_size").fetchone()
            connection.execute("pragma wal_checkpoint(truncate)")
        with manifest.open("r+b") as opened:
            opened.seek((root - 1) * size)
            opened.write(b"\xff" * size)
        with pytest.raises(DamagedStateError, match="run this again"):
            attempts.suspects([file])
        attempts.close()
    assert not installation.run().failures


@pytest.mark.timeout(900)
def test_the_command_line_lists_them(
    home: Path, installation: Installation, vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert installation.settings.home == home
    installation.write("killer.md", KILLING)
    for _ in range(3):
        assert start(installation).wait(RUN_SECONDS) == -signal.SIGKILL
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    done = vectorize_here("ingest", installation.folder, "--json")
    assert done.code == SOME_FAILED, done.err
    assert [(Path(each["source"]).name, each["error"]) for each in done.json["failures"]] == [
        ("killer.md", "KilledRunsError")
    ]
    assert done.json["documents"] == GOOD + 1
