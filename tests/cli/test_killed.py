"""`vectorize ingest` killed at random moments: the next call completes the work, nothing lost, nothing twice."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import COMMAND, Vectorize
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.stores import open_store

DOCUMENTS = 40
KILLS = 5
SEED = 20261122


def write_corpus(folder: Path) -> None:
    folder.mkdir()
    for n in range(DOCUMENTS):
        entries = (
            f"## Entry {m}\n\nOn day {m} of year {n} the keeper saw {n * m + 1} ships pass. " * 3 for m in range(8)
        )
        (folder / f"{n:03}.md").write_text("\n\n".join(entries))
        os.utime(folder / f"{n:03}.md", (1_700_000_000 + 40_000 * n,) * 2)


def contents(home: Path) -> dict[str, tuple[object, ...]]:
    """Row id -> everything that does not depend on when it was made; a row that is there twice shows."""
    store = open_store(load_settings({"VECTORIZE_HOME": str(home)}).store, home)
    rows: dict[str, tuple[object, ...]] = {}
    columns = ("id", "source_id", "item_index", "text", "occurred_at", "partition", "metadata", "model", "vector")
    for batch in store.scan("corpus", columns):
        for row in batch.to_pylist():
            assert row["id"] not in rows, f"{row['source_id']} #{row['item_index']} is there twice"
            vector = np.asarray(row.pop("vector"), dtype=np.float32)
            rows[row["id"]] = (*(row[name] for name in columns[1:-1]), tuple(np.round(vector, 2)))
    return rows


@pytest.mark.timeout(600)
def test_killed_at_random_moments(
    vectorize: Vectorize, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "docs"
    write_corpus(folder)
    moments = random.Random(SEED)
    started = time.monotonic()
    assert vectorize("ingest", folder).code == 0
    undisturbed_seconds = time.monotonic() - started
    expected = contents(home)
    assert len(expected) >= DOCUMENTS * 8

    monkeypatch.setenv("VECTORIZE_HOME", str(tmp_path / "killed"))
    for _ in range(KILLS):
        process = subprocess.Popen(
            [*COMMAND, "ingest", str(folder)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            process.wait(moments.uniform(0.2, 0.95) * undisturbed_seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
    done = vectorize("ingest", folder, "--json")
    assert done.code == 0, done.err
    assert contents(tmp_path / "killed") == expected
    nothing = vectorize("ingest", folder, "--reconcile", "--json").json
    assert (nothing["encoded"], nothing["deleted"], nothing["documents"]) == (0, 0, DOCUMENTS)

    import dagster as dg

    with dg.DagsterInstance.from_config(str(tmp_path / "killed" / "dagster")) as instance:
        left = [run.run_id for run in instance.get_runs() if not run.is_finished]
    assert left == [], "runs of killed processes still count as started"
