"""What runs had in hand when they died, on SQLite and on PostgreSQL."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.attempts import Kind, PartitionId, RunAttempts, Spot, attempts, purge_deaths
from vectorize_pipelines.state.database import Database

HERE = ("t", 0)
SPOT = Spot(HERE, 10, 5)

#: Notes what its arguments say and is killed.
DYING = """
import json, os, signal, sys
from pathlib import Path
from vectorize_pipelines.state.attempts import RunAttempts, Spot
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state import leases

leases.LEASE_SECONDS = 2.0  # for so long a killed run counts as one that lives
home, url, kind, calls = json.loads(sys.argv[1])
settings = load_settings({}, home=Path(home), **({"ledger": {"url": url}} if url else {}))
run = RunAttempts.open(settings, kind, "dying")
run.begin({("t", 0): 10, ("t", 1): 0}, {})
exec(calls)
os.kill(os.getpid(), signal.SIGKILL)
"""


def die(settings: Settings, calls: str, kind: Kind = "drain") -> None:
    """A run in a process of its own that makes these calls of `run`, and dies."""
    url = settings.ledger.url.get_secret_value() if settings.ledger.url is not None else ""
    given = json.dumps([str(settings.home), url, kind, calls])
    done = subprocess.run([sys.executable, "-c", DYING, given], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@contextmanager
def begun(
    settings: Settings, position: int = 10, kind: Kind = "drain", ends: dict[PartitionId, int] | None = None
) -> Iterator[RunAttempts]:
    with closing(RunAttempts.open(settings, kind, f"run-{os.getpid()}")) as run:
        run.begin({HERE: position, ("t", 1): 0}, ends or {})
        yield run


def rows(settings: Settings) -> int:
    with closing(Database.open(settings)) as database, database.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(attempts)).scalar_one())


def test_what_was_in_hand_is_suspect_until_it_is_acknowledged(installation: Settings) -> None:
    die(installation, 'run.note_read({("t", 0): 30}, noted=True); run.acknowledged({("t", 0): 15})')
    with begun(installation, 15) as run:
        assert run.is_near()
        assert run.has_suspects({HERE: (15, 16)})
        assert run.has_suspects({HERE: (29, 40)})
        assert not run.has_suspects({HERE: (30, 40), ("t", 1): (0, 5)})
        assert run.portion(HERE, 20, 64) == 64
        run.note_read({HERE: 30}, noted=False)
        run.acknowledged({HERE: 30})
        run.forget_acknowledged()
        assert not run.is_near()
    assert rows(installation) == 0


def test_what_a_drain_has_committed_is_no_suspect(installation: Settings) -> None:
    die(installation, 'run.note_read({("t", 0): 30}, noted=True)')
    with begun(installation, 30) as run:
        assert not run.has_suspects({HERE: (0, 100)})
    assert rows(installation) == 0


def test_two_deaths_alone_set_a_message_aside_and_those_of_other_kinds_count(installation: Settings) -> None:
    die(installation, 'run.note_alone(Spot(("t", 0), 12, 5), "encoding")')
    with begun(installation) as run:
        assert run.knows_deaths
        assert not run.set_aside(Spot(HERE, 12, 5))
        assert [death.stage for death in run.deaths_alone(Spot(HERE, 12, 5))] == ["encoding"]
    die(installation, 'run.note_alone(Spot(("t", 0), 12, 5), "reading")', "replay")
    with begun(installation, kind="replay") as run:
        assert [str(death) for death in run.set_aside(Spot(HERE, 12, 5))] == [
            "run dying, encoding: its process died",
            "run dying, reading: its process died",
        ]
        assert not run.set_aside(Spot(HERE, 13, 5))
        assert not run.has_suspects({HERE: (0, 100)}), "it is known what to do with it"


def test_portions_shrink_with_the_deaths_of_what_is_written_together(installation: Settings) -> None:
    for expected in (64, 8, 1, 1):
        die(installation, 'run.note_writing({("t", 0): (10, 20)})')
        with begun(installation) as run:
            assert run.portion(HERE, 19, 64) == expected
            assert run.portion(HERE, 20, 64) == 64


def test_a_run_that_lives_or_ended_in_order_is_no_death(installation: Settings) -> None:
    with begun(installation) as living:
        living.note_read({HERE: 20}, noted=True)
        with begun(installation) as run:
            assert not run.has_suspects({HERE: (0, 100)})
        assert rows(installation) == 1
    assert rows(installation) == 0


def fail(settings: Settings, error: Exception, *, proven: bool) -> None:
    """A run that ends with an error, with the message 10 alone in hand."""
    with begun(settings) as run:
        run.note_alone(SPOT, "writing")
        run.ending(error, proven=proven)


@pytest.mark.parametrize("proven", [True, False])
def test_an_error_is_a_death_and_counts_where_others_would_not_have_met_it(
    installation: Settings, proven: bool
) -> None:
    for _ in range(2):
        fail(installation, StoreError("no room"), proven=proven)
    with begun(installation) as run:
        deaths = run.set_aside(SPOT)
        assert [death.error for death in deaths] == (["StoreError: no room"] * 2 if proven else [])
        assert run.needs_proof(SPOT)
        assert run.times_in_hand(SPOT) == (0 if proven else 2)


@pytest.mark.parametrize(
    ("second", "is_set_aside"), [(ValueError("an index of 7"), True), (RuntimeError("the device is gone"), False)]
)
def test_an_error_that_was_proven_before_counts_where_no_other_message_is_left(
    installation: Settings, second: Exception, is_set_aside: bool
) -> None:
    fail(installation, ValueError("an index of 6"), proven=True)
    fail(installation, second, proven=False)
    with begun(installation) as run:
        assert bool(run.set_aside(SPOT)) == is_set_aside


def test_errors_before_one_that_is_proven_do_not_count(installation: Settings) -> None:
    fail(installation, ValueError("an index"), proven=False)
    fail(installation, ValueError("an index"), proven=True)
    with begun(installation) as run:
        assert not run.set_aside(SPOT)


def test_what_is_known_of_a_topic_does_not_hold_for_the_one_that_is_made_in_its_place(installation: Settings) -> None:
    for _ in range(2):
        die(installation, 'run.note_alone(Spot(("t", 0), 12, 5), "encoding")')
    with begun(installation) as run:
        assert run.set_aside(Spot(HERE, 12, 5))
        assert not run.set_aside(Spot(HERE, 12, 6)), "a message of another time at the same offset"
    with begun(installation, ends={HERE: 12}) as run:
        assert not run.set_aside(Spot(HERE, 12, 5)), "the topic has become shorter"
    assert rows(installation) == 0


def test_deaths_are_forgotten_in_time(installation: Settings) -> None:
    for _ in range(2):
        die(installation, 'run.note_alone(Spot(("t", 0), 12, 5), "encoding")')
    with begun(installation):
        assert purge_deaths(installation, datetime.now(UTC) - timedelta(hours=1)) == 0
        assert purge_deaths(installation, datetime.now(UTC) + timedelta(hours=1)) == 2
    with begun(installation) as run:
        assert not run.set_aside(Spot(HERE, 12, 5))


def test_an_error_after_everything_was_acknowledged_is_no_death(installation: Settings) -> None:
    with begun(installation) as run:
        run.note_read({HERE: 20}, noted=True)
        run.acknowledged({HERE: 20})
        run.ending(ValueError("later"), proven=True)
    assert rows(installation) == 0


def test_lock_files_go_with_their_runs(tmp_path: object) -> None:
    settings = load_settings({}, home=tmp_path)
    die(settings, 'run.note_read({("t", 0): 20}, noted=True)')
    with begun(settings):
        assert len(list((settings.home / "locks" / "attempts").glob("*.lock"))) == 2, "the notes', and its own"
    assert len(list((settings.home / "locks" / "attempts").glob("*.lock"))) == 1
