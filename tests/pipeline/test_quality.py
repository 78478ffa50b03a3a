"""Checks on vectors that a store would refuse to take, but may come to hold all the same."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.pipeline.quality import VectorReport, differing_sources, inspect_vectors
from vectorize_pipelines.stores.protocol import VectorStore

DIMENSION = 4
GOOD = [0.5, 0.5, 0.5, 0.5]


class Holding:
    """A store that holds these vectors."""

    def __init__(self, *vectors: list[float]):
        self.vectors = vectors

    def scan(self, *_: Any) -> Iterator[pa.RecordBatch]:
        kind = pa.list_(pa.float32(), len(self.vectors[0]))
        yield pa.record_batch([pa.array(self.vectors, kind)], ["vector"])


@pytest.mark.parametrize(
    ("vectors", "report"),
    [
        ([GOOD, GOOD], VectorReport(2, 0, 0, 0)),
        ([GOOD, [float("nan"), 0, 0, 0]], VectorReport(2, 0, 1, 0)),
        ([GOOD, [float("inf"), 0, 0, 0], [2, 0, 0, 0]], VectorReport(3, 0, 1, 1)),
        ([[1.0, 0.0]], VectorReport(1, 1, 0, 0)),
        ([[0.0, 0, 0, 0]], VectorReport(1, 0, 0, 1)),
    ],
)
def test_faults_are_counted_by_kind(vectors: list[list[float]], report: VectorReport) -> None:
    store = cast("VectorStore", Holding(*vectors))
    assert inspect_vectors(store, "any", None, DIMENSION, normalized=True) == report
    assert report.bad == report.wrong_dimension + report.not_finite + report.not_unit


def test_any_length_is_right_for_a_model_that_does_not_normalise() -> None:
    store = cast("VectorStore", Holding([3, 4, 0, 0]))
    assert inspect_vectors(store, "any", None, DIMENSION, normalized=False).bad == 0


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 5)), st.dictionaries(st.text(max_size=3), st.integers(1, 5)))
def test_differing_sources_are_those_that_are_expected_and_stored_otherwise(
    stored: dict[str, int], expected: dict[str, int]
) -> None:
    differing = differing_sources(stored, expected)
    for name, rows in expected.items():
        assert (name in differing) == (stored.get(name, 0) != rows)
    assert differing.keys() <= expected.keys()


def test_norms_within_float_precision_are_unit() -> None:
    vector = np.random.default_rng(1).normal(size=DIMENSION).astype(np.float32)
    store = cast("VectorStore", Holding(list(vector / np.linalg.norm(vector))))
    assert inspect_vectors(store, "any", None, DIMENSION, normalized=True).bad == 0
