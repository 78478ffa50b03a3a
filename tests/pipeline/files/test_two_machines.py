"""Two machines with one PostgreSQL and one store: what one of them has done, the other need not do."""

import json
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import sqlalchemy as sa

from tests.attacks.killer_folder_run import SETTINGS
from tests.forks import Fork
from tests.pipeline.files import machine
from tests.pipeline.files.installation import paragraphs
from tests.servers.postgresql import Server, running

RUN_SECONDS = 120.0
#: Calls a function of `machine` with the folder on the machine of that name; returns its status and what it printed.
OnMachine: TypeAlias = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def server(postgresql_program: None) -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture
def database(server: Server) -> str:
    """The address of a new database."""
    name = f"test_{uuid.uuid4().hex}"
    url = server.url().replace("postgresql://", "postgresql+psycopg2://", 1)
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    return server.url(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for n in range(5):
        (folder / f"good-{n}.md").write_text(paragraphs(n, n + 100))
    return folder


@pytest.fixture
def on_machine(database: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnMachine:
    shared = {
        **SETTINGS,
        "VECTORIZE_LEDGER__URL": database,
        "VECTORIZE_STORE__URL": str(tmp_path / "lancedb"),
    }

    def call(name: str, function: Callable[..., None], *arguments: str) -> tuple[int, str]:
        with monkeypatch.context() as environment:
            for variable, value in {**shared, "VECTORIZE_HOME": str(tmp_path / name)}.items():
                environment.setenv(variable, value)
            (tmp_path / name).mkdir(exist_ok=True)
            out, err = tmp_path / name / "out", tmp_path / name / "err"
            out.write_text("")
            process = Fork(function, folder, *arguments, out=out, err=err)
            try:
                status = process.wait(RUN_SECONDS)
            finally:
                process.kill()
        assert status <= 0, err.read_text()[-3000:]
        return status, out.read_text()

    return call


def found_and_done(on_machine: OnMachine, name: str) -> dict[str, Any]:
    status, said = on_machine(name, machine.find_and_run)
    assert status == 0
    outcome: dict[str, Any] = json.loads(said.splitlines()[-1])
    return outcome


def test_what_one_machine_did_the_other_need_not_do(on_machine: OnMachine, folder: Path, tmp_path: Path) -> None:
    first = found_and_done(on_machine, "one")
    assert (first["changed"], first["encoded"] > 0, first["failures"]) == (5, True, {})
    nothing = {"changed": 0, "vanished": 0, "unchanged": 5, "documents": 5, "encoded": 0, "deleted": 0}
    assert found_and_done(on_machine, "two") == {**nothing, "failures": {}}
    (folder / "good-0.md").unlink()
    (folder / "new.md").write_text(paragraphs(50))
    second = found_and_done(on_machine, "two")
    assert (second["changed"], second["vanished"], second["unchanged"]) == (1, 1, 4)
    assert second["deleted"] > 0
    assert found_and_done(on_machine, "one") == {**nothing, "failures": {}}
    assert not [*tmp_path.glob("*/manifests")], "no machine has a file that the other lacks"


def test_deaths_on_any_machine_are_held_against_a_file(on_machine: OnMachine, folder: Path) -> None:
    (folder / "bad.md").write_text(paragraphs(7))
    for name in ("one", "two"):
        assert on_machine(name, machine.die_with, "bad.md") == (-signal.SIGKILL, "")
    outcome = found_and_done(on_machine, "three")
    assert list(outcome["failures"]) == ["bad.md"]
    assert outcome["failures"]["bad.md"].count("embedding: its process died") == 2
    assert found_and_done(on_machine, "one")["changed"] == 0
