"""Near-duplicates: every pair is counted, few are kept."""

import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest

from vectorize_pipelines.assets import report
from vectorize_pipelines.assets.report import NEAR_DUPLICATE_COSINE, PAIRS_SHOWN, near_duplicates

MOST_MEMORY = 64 * 2**20


def records(vectors: np.ndarray[Any, Any], per_source: int = 1) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [f"{n:06}" for n in range(len(vectors))],
            "source_id": [f"{n // per_source}.txt" for n in range(len(vectors))],
            "item_index": [n % per_source for n in range(len(vectors))],
            "vector": list(vectors.astype(np.float32)),
        }
    )


def test_thousands_of_copies_are_counted_in_bounded_memory() -> None:
    copies = records(np.ones((3000, 8)))
    tracemalloc.start()
    try:
        count, pairs = near_duplicates(copies)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 3000 * 2999 // 2
    assert pairs == [("0.txt #0", f"{n}.txt #0", 1.0) for n in range(1, PAIRS_SHOWN + 1)]
    assert peak < MOST_MEMORY


@pytest.mark.parametrize("block_rows", [1, 7, 1024])
def test_the_nearest_pairs_of_different_documents_are_shown(monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    monkeypatch.setattr(report, "BLOCK_ROWS", block_rows)
    numbers = np.random.default_rng(3)
    vectors = numbers.normal(size=3) + 0.2 * numbers.normal(size=(60, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    expected = sorted(
        (
            (cosines[a, b], f"{a // 3}.txt #{a % 3}", f"{b // 3}.txt #{b % 3}")
            for a in range(60)
            for b in range(a + 1, 60)
            if a // 3 != b // 3 and cosines[a, b] >= NEAR_DUPLICATE_COSINE
        ),
        reverse=True,
    )
    assert len(expected) > PAIRS_SHOWN
    count, pairs = near_duplicates(records(vectors, per_source=3))
    assert count == len(expected)
    assert [pair[:2] for pair in pairs] == [pair[1:] for pair in expected[:PAIRS_SHOWN]]


def test_nothing_has_no_pairs() -> None:
    assert near_duplicates(records(np.empty((0, 3)))) == (0, [])
    assert near_duplicates(records(np.ones((5, 3)), per_source=5)) == (0, [])
