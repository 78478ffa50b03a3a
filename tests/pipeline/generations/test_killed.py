"""A reembedding run killed at random points: run again it ends in the same rows, and encodes next to nothing twice."""

import multiprocessing
import random
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.generations.two_models import NEW, OLD, HashEncoder, Writers, installed
from vectorize_pipelines.encoders.base import Purpose, Vectors
from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.pipeline.generations.begin import TRIAL

ROWS = 900
BATCH_ITEMS = 64
KILLS = 3
SEED = 20261124
LOOK_SECONDS = 0.01
RUN_SECONDS = 60
FIELDS = ("id", "source_id", "text", "content_hash", "partition", "occurred_at", "metadata", "model", "vector")


class LoggingEncoder(HashEncoder):
    """Notes in a file what it encodes, once it is done."""

    def __init__(self, dimension: int, log: Path):
        super().__init__(dimension)
        self._log = log

    def encode(self, items: list[str], purpose: Purpose = "document") -> Vectors:  # type: ignore[override]
        vectors = super().encode(items, purpose)
        with self._log.open("a") as log:
            log.writelines(f"{item}\n" for item in items)
        return vectors


def installation(home: Path) -> Writers:
    return installed(home, VECTORIZE_CACHE__ENABLED="on", VECTORIZE_PIPELINE__BATCH_ITEMS=str(BATCH_ITEMS))


def reembed(home: Path, log: Path) -> None:
    """What the processes run that are killed."""
    writers = installation(home)
    writers.encoders[NEW] = LoggingEncoder(NEW, log)
    writers.reembed()


def rows_in_new(writers: Writers) -> int:
    try:
        return writers.store.count(writers.physical(NEW))
    except (CollectionNotFoundError, StopIteration):
        return 0


def killed_at(writers: Writers, home: Path, log: Path, threshold: int) -> bool:
    """Kills a run once the new generation has more rows than that; false where the run ended before."""
    process = multiprocessing.get_context("spawn").Process(target=reembed, args=(home, log))
    process.start()
    try:
        for _ in range(round(RUN_SECONDS / LOOK_SECONDS)):
            if rows_in_new(writers) > threshold:
                process.kill()
                break
            process.join(LOOK_SECONDS)
            if process.exitcode is not None:
                break
        process.join(RUN_SECONDS)
        return process.exitcode is not None and process.exitcode < 0
    finally:
        process.kill()


def contents(
    writers: Writers, name: str
) -> tuple[list[tuple[object, ...]], np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    rows = [row for batch in writers.store.scan(name, FIELDS) for row in batch.to_pylist()]
    rows.sort(key=lambda row: str(row["id"]))
    vectors = np.array([row["vector"] for row in rows], np.float32)
    return [tuple(row[name] for name in FIELDS[:-1]) for row in rows], vectors


@pytest.mark.timeout(200)
@pytest.mark.slow
def test_killed_while_it_fills_the_new_generation(tmp_path: Path) -> None:
    texts = {f"source {n}": f"text {n}" for n in range(ROWS)}
    undisturbed = installation(tmp_path / "undisturbed")
    undisturbed.write(texts)
    undisturbed.reembed()
    expected, vectors = contents(undisturbed, undisturbed.physical(NEW))

    home, log = tmp_path / "killed", tmp_path / "encoded"
    writers = installation(home)
    writers.write(texts)
    thresholds = random.Random(SEED)
    left: list[int] = []
    for _ in range(KILLS):
        there = rows_in_new(writers)
        if killed_at(writers, home, log, thresholds.randint(there, (there + ROWS) // 2)):
            left.append(rows_in_new(writers))
    assert any(0 < rows < ROWS for rows in left), f"no run was killed while it wrote: {left}"

    reembed(home, log)
    found, found_vectors = contents(writers, writers.physical(NEW))
    assert found == expected
    np.testing.assert_array_equal(found_vectors, vectors)
    assert writers.texts() == writers.texts(writers.physical(OLD)) == texts
    encoded = [text for text in log.read_text().splitlines() if text != TRIAL]
    assert set(encoded) == set(texts.values())
    assert len(encoded) - ROWS <= len(left) * 128, "more than the batch in hand was encoded twice"
