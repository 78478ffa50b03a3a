"""The processes of `vectorize ingest --shards`: one that is killed is repeated, one that fails is told of."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import Vectorize
from vectorize_pipelines.cli import sharded
from vectorize_pipelines.cli.reporting import EXIT_INTERRUPTED
from vectorize_pipelines.cli.sharded import ShardProcesses, ended_by_signals, summed
from vectorize_pipelines.core.shards import Shard

#: What stands in the place of the command: its last argument is a folder of marks, its first one says what it does.
COMMAND = """
import json, os, pathlib, signal, sys
from vectorize_pipelines.cli.showing import FIGURES, FILE_FIGURES

deeds, shard = sys.argv[1], sys.argv[sys.argv.index("--shard") + 1]
mark = pathlib.Path(sys.argv[-1]) / f"{shard.replace('/', '-')}-{os.getpid()}"
mark.touch()
(mark.parent / f"group-{os.getpid()}").write_text(str(os.getpgrp()))
tries = len(list(mark.parent.glob(f"{shard.replace('/', '-')}-*")))
if shard == "1/3" and (deeds == "dies" or (deeds == "dies-once" and tries == 1)):
    os.kill(os.getpid(), signal.SIGKILL)
if deeds == "waits":
    signal.pause()
outcome = {**dict.fromkeys((*FIGURES, *FILE_FIGURES), 2), "shard": shard, "run_id": shard, "days": ["2024-03-01"]}
outcome |= {"failures": [], "notices": [], "other_kinds": {}}
failed = shard == "1/3" and deeds == "fails"
print(json.dumps({**outcome, "status": "failed" if failed else "succeeded", "errors": ["no store"] if failed else []}))
sys.exit(5 if failed else 6 if shard == "2/3" else 0)
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have processes of shards do what `COMMAND` says."""
    monkeypatch.setattr(sharded, "_COMMAND", COMMAND)


@pytest.mark.usefixtures("stand_in")
def test_a_shard_whose_process_is_killed_is_repeated(tmp_path: Path) -> None:
    with ShardProcesses("dies-once", [str(tmp_path)]) as processes:
        found = summed(processes.run(Shard.layout(3)))
    assert (found["status"], found["documents"], found["exit_code"]) == ("succeeded", 6, 6), "6: some files failed"
    assert found["runs"] == {"0/3": "0/3", "1/3": "1/3", "2/3": "2/3"}
    assert found["days"] == ["2024-03-01"]
    assert len(list(tmp_path.glob("1-3-*"))) == 2
    assert len(list(tmp_path.glob("0-3-*"))) == 1
    groups = list(tmp_path.glob("group-*"))
    assert len(groups) == 4
    assert all(group.name == f"group-{group.read_text()}" for group in groups), "no signal of the terminal reaches them"


@pytest.mark.usefixtures("stand_in")
def test_a_shard_that_dies_every_time_is_given_up_and_the_others_are_not(tmp_path: Path) -> None:
    with ShardProcesses("dies", [str(tmp_path)]) as processes:
        found = summed(processes.run(Shard.layout(3)))
    assert (found["status"], found["documents"], found["exit_code"]) == ("failed", 4, 1)
    assert found["errors"] == ["shard 1/3: ended with -9; see above"]
    assert len(list(tmp_path.glob("1-3-*"))) == 1 + sharded.MOST_DEATHS


@pytest.mark.usefixtures("stand_in")
def test_the_error_of_a_shard_and_its_exit_code_are_those_of_the_command(tmp_path: Path) -> None:
    with ShardProcesses("fails", [str(tmp_path)]) as processes:
        found = summed(processes.run(Shard.layout(3)))
    assert (found["status"], found["exit_code"], found["errors"]) == ("failed", 5, ["shard 1/3: no store"])


@pytest.fixture
def hangup_is_heard() -> Iterator[None]:
    """As in a terminal, also where the tests were begun with `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("stand_in", "hangup_is_heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_all_shards(number: signal.Signals, tmp_path: Path) -> None:
    def interrupt_once_begun() -> None:
        while not list(tmp_path.glob("*")):
            begun.wait(0.02)
        signal.pthread_kill(main, number)

    begun, main = threading.Event(), threading.get_ident()
    thread = threading.Thread(target=interrupt_once_begun)
    with ShardProcesses("waits", [str(tmp_path)]) as processes, ended_by_signals(processes):
        thread.start()
        found = summed(processes.run(Shard.layout(3)))
    thread.join()
    assert (found["status"], found["exit_code"]) == ("failed", EXIT_INTERRUPTED)
    for mark in tmp_path.glob("?-3-*"):
        assert f"shard {mark.name[0]}/3: interrupted" in found["errors"]


@pytest.mark.slow
def test_ingest_in_shards(vectorize_here: Vectorize, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for n in range(4):
        (folder / f"{n}.md").write_text(f"The tide gauge number {n} is read every six minutes.")
    refused = vectorize_here("ingest", folder, "--shards", "2", "--shard", "0/2")
    assert refused.code == 2
    assert "give one of the two" in refused.err
    done = vectorize_here("ingest", folder, "--shards", "2", "--json")
    assert done.code == 0, done.err
    assert (done.json["documents"], done.json["encoded"], done.json["failures"]) == (4, 4, [])
    assert all(done.json["runs"][shard] for shard in ("0/2", "1/2"))
    again = vectorize_here("ingest", folder, "--shard", "1/2", "--json")
    assert (again.code, again.json["shard"], again.json["encoded"]) == (0, "1/2", 0), again.err
