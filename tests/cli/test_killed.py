"""`vectorize ingest` killed while it writes: the next call completes the work, nothing lost, nothing twice."""

import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from tests.commands import COMMAND, Vectorize
from tests.servers.dagster import until
from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore

DOCUMENTS = 80
PASSAGES = 8
#: Several batches, so that a kill finds some written and others not.
BATCH_ITEMS = 64
KILLS = 3
SEED = 20261122
LOOK_SECONDS = 0.02
RUN_SECONDS = 120

FIELDS = ("id", "source_id", "item_index", "text", "occurred_at", "partition", "metadata", "model", "vector")


def write_corpus(folder: Path, documents: int = DOCUMENTS) -> None:
    folder.mkdir()
    for n in range(documents):
        entries = (
            f"## Entry {m}\n\nOn day {m} of year {n} the keeper saw {n * m + 1} ships pass. " * 3
            for m in range(PASSAGES)
        )
        (folder / f"{n:03}.md").write_text("\n\n".join(entries))
        os.utime(folder / f"{n:03}.md", (1_700_000_000 + 40_000 * n,) * 2)


def the_store(home: Path) -> VectorStore:
    return open_store(load_settings({"VECTORIZE_HOME": str(home)}).store, home)


def rows_in(home: Path) -> int:
    try:
        return the_store(home).count("corpus")
    except CollectionNotFoundError:
        return 0


def contents(home: Path) -> tuple[dict[str, tuple[Any, ...]], np.ndarray[Any, np.dtype[np.float32]]]:
    """Row id -> everything that does not depend on when it was made, and the vectors in the order of the ids."""
    rows = [row for batch in the_store(home).scan("corpus", FIELDS) for row in batch.to_pylist()]
    rows.sort(key=lambda row: str(row["id"]))
    fields = {row["id"]: tuple(row[name] for name in FIELDS[1:-1]) for row in rows}
    assert len(fields) == len(rows), "rows are there twice"
    return fields, np.array([row["vector"] for row in rows], dtype=np.float32)


def killed_at(home: Path, folder: Path, threshold: int) -> bool:
    """Starts an ingest and kills it once the store has more rows than `threshold`; false where it ended before."""
    command = [*COMMAND, "ingest", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(round(RUN_SECONDS / LOOK_SECONDS)):
                if rows_in(home) > threshold:
                    process.send_signal(signal.SIGKILL)
                    break
                try:
                    process.wait(LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
                break
            return process.wait(RUN_SECONDS) == -signal.SIGKILL
        finally:
            process.kill()


@pytest.mark.timeout(600)
def test_killed_while_it_writes(
    vectorize_here: Vectorize, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, killed = tmp_path / "docs", tmp_path / "killed"
    write_corpus(folder)
    monkeypatch.setenv("VECTORIZE_PIPELINE__BATCH_ITEMS", str(BATCH_ITEMS))
    assert vectorize_here("ingest", folder).code == 0
    expected, vectors = contents(home)
    assert len(expected) >= DOCUMENTS * PASSAGES

    # What was found out about the model stays, so that a round is about embedding and not about the export.
    shutil.copytree(home / "encoders", killed / "encoders")
    monkeypatch.setenv("VECTORIZE_HOME", str(killed))
    thresholds = random.Random(SEED)
    left_by_kills = []
    for _ in range(KILLS):
        there = rows_in(killed)
        if killed_at(killed, folder, thresholds.randint(there, (there + len(expected)) // 2)):
            left_by_kills.append(rows_in(killed))
    assert any(0 < left < len(expected) for left in left_by_kills), f"no run was killed while it wrote: {left_by_kills}"

    done = vectorize_here("ingest", folder, "--json")
    assert done.code == 0, done.err
    found, found_vectors = contents(killed)
    assert found == expected
    np.testing.assert_allclose(found_vectors, vectors, atol=1e-3)
    nothing = vectorize_here("ingest", folder, "--reconcile", "--json").json
    assert (nothing["encoded"], nothing["deleted"], nothing["documents"]) == (0, 0, DOCUMENTS)

    with dg.DagsterInstance.from_config(str(killed / "dagster")) as instance:
        left = [run.run_id for run in instance.get_runs() if not run.is_finished]
    assert left == [], "runs of killed processes still count as started"


@pytest.mark.slow
def test_interrupted_it_says_so(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "docs"
    write_corpus(folder, 20 * DOCUMENTS)  # for a minute: it is interrupted after its first rows
    monkeypatch.setenv("VECTORIZE_PIPELINE__BATCH_ITEMS", str(BATCH_ITEMS))
    command = [*COMMAND, "ingest", str(folder), "--json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            until("the first rows", lambda: rows_in(home) > 0, RUN_SECONDS)
            process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=RUN_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert json.loads(out)["status"] == "failed"
    assert "the same command goes on from there" in said
