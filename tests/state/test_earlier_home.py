"""A home that an earlier version made, in use by this one: nothing is encoded again, and all that was is found."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.commands import COMMAND
from tests.state.earlier import assert_every_row, unpacked_home
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.runs.instance import open_instance
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.damage import left_aside
from vectorize_pipelines.state.home import put_aside_in

RUN_OF_THEN = "312b10d4-8edf-43cf-9738-64cea00b663c"


@pytest.fixture
def earlier(tmp_path: Path, exported_models: Path) -> Iterator[tuple[Path, Path]]:
    """The home, and the documents that it was made from."""
    with unpacked_home(tmp_path) as (home, corpus):
        (home / "encoders").symlink_to(exported_models)
        yield home, corpus


@pytest.mark.timeout(900)
def test_a_home_of_an_earlier_version_goes_on(earlier: tuple[Path, Path]) -> None:
    home, corpus = earlier

    def vectorize(*arguments: object) -> Any:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments), "--json"],
            env={**os.environ, "VECTORIZE_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr
        assert "put aside" not in done.stderr
        return json.loads(done.stdout)

    result = vectorize("ingest", corpus)
    # Documents are read in another way than then: their rows are written anew, with the vectors that there are.
    assert (result["documents"], result["encoded"], result["cache_hits"], result["deleted"], result["failed"]) == (
        (2, 0, 2, 0, 0)
    )
    hits = vectorize("search", "how often is the gauge read")
    assert [Path(each["source_id"]).name for each in hits] == ["tide.md", "lamp.txt"]
    listed = vectorize("requests")
    assert sorted(each["status"] for each in listed["requests"]) == sorted(state.value for state in RequestState)
    status = vectorize("status", "request-2")
    assert status["vectors"] == 2
    assert status["callback"] == {"state": "waiting", "attempts": 0, "error": None}
    (shown,) = vectorize("collections", "show", "corpus")
    assert (shown["state"], shown["rows"]) == ("live", 2)
    settings = load_settings({"VECTORIZE_HOME": str(home)})
    with open_instance(settings) as instance:
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.SUCCESS] * 2
        assert instance.get_run_by_id(RUN_OF_THEN) is not None
    assert [left_aside(folder) for folder in put_aside_in(settings)] == [[], [], []]
    assert_every_row(settings)
