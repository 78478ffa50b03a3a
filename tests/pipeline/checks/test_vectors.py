"""Checks on vectors that a store would refuse to take, but may come to hold all the same."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.pipeline.checks.vectors import (
    VectorReport,
    canary_recall,
    inspect_vectors,
)
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.conformance.records import COLLECTION, Row, row, spec, table

DIMENSION = 4
GOOD = [0.5, 0.5, 0.5, 0.5]


class Holding:
    """A store that holds these vectors."""

    def __init__(self, *vectors: list[float]):
        self.vectors = vectors

    def scan(self, *_: Any) -> Iterator[pa.RecordBatch]:
        kind = pa.list_(pa.float32(), len(self.vectors[0]))
        names = [f"{number}.txt" for number in range(len(self.vectors))]
        yield pa.record_batch([pa.array(names), pa.array(self.vectors, kind)], ["source_id", "vector"])


@pytest.mark.parametrize(
    ("vectors", "report"),
    [
        ([GOOD, GOOD], VectorReport(2, 0, 0, 0)),
        ([GOOD, [float("nan"), 0, 0, 0]], VectorReport(2, 0, 1, 0, frozenset({"1.txt"}))),
        ([GOOD, [float("inf"), 0, 0, 0], [2, 0, 0, 0]], VectorReport(3, 0, 1, 1, frozenset({"1.txt", "2.txt"}))),
        ([[1.0, 0.0]], VectorReport(1, 1, 0, 0, frozenset({"0.txt"}))),
        ([[0.0, 0, 0, 0]], VectorReport(1, 0, 0, 1, frozenset({"0.txt"}))),
    ],
)
def test_faults_are_counted_by_kind(vectors: list[list[float]], report: VectorReport) -> None:
    store = cast("VectorStore", Holding(*vectors))
    assert inspect_vectors(store, "any", None, DIMENSION, normalized=True) == report
    assert report.bad == report.wrong_dimension + report.not_finite + report.not_unit


def test_any_length_is_right_for_a_model_that_does_not_normalise() -> None:
    store = cast("VectorStore", Holding([3, 4, 0, 0]))
    assert inspect_vectors(store, "any", None, DIMENSION, normalized=False).bad == 0


def test_norms_within_float_precision_are_unit() -> None:
    vector = np.random.default_rng(1).normal(size=DIMENSION).astype(np.float32)
    store = cast("VectorStore", Holding(list(vector / np.linalg.norm(vector))))
    assert inspect_vectors(store, "any", None, DIMENSION, normalized=True).bad == 0


class Uncased:
    """An encoder to which upper and lower case are one."""

    def encode(self, items: Sequence[str], purpose: str = "document") -> np.ndarray[Any, np.dtype[np.float32]]:
        seeds = [sum(text.lower().encode()) for text in items]
        vectors = np.stack([np.random.default_rng(seed).normal(size=DIMENSION) for seed in seeds])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.astype(np.float32)


def text_row(source_id: str, text: str, encoded_as: str | None = None) -> Row:
    (vector,) = Uncased().encode([encoded_as or text])
    return row(source_id, text=text, content_hash=text.encode().hex(), vector=vector.tolist())


def holding(settings: Settings, *rows: Row) -> VectorStore:
    store = open_store(settings.store, settings.home)
    store.ensure_collection(COLLECTION, spec())
    store.upsert(COLLECTION, table(rows))
    return store


ENCODER = cast("Encoder", Uncased())


def test_texts_with_one_vector_find_each_other(settings: Settings) -> None:
    texts = ("OK", "ok", "Ok", "NOT OK", "not ok", "another")
    store = holding(settings, *(text_row(f"{n}.txt", text) for n, text in enumerate(texts)))
    report = canary_recall(store, COLLECTION, ENCODER, None)
    assert (report.sampled, report.missed) == (len(texts), ())


@pytest.mark.parametrize("encoded_as", ["something else", "the keeper"])
def test_a_vector_of_another_text_is_missed(settings: Settings, encoded_as: str) -> None:
    rows = [text_row("lamp.txt", "the lamp", encoded_as), text_row("keeper.txt", "the keeper")]
    rows += [text_row("copy.txt", "The Lamp")]
    assert canary_recall(holding(settings, *rows), COLLECTION, ENCODER, None).missed == ("lamp.txt",)


def test_a_vector_without_direction_is_missed(settings: Settings) -> None:
    lost = text_row("lamp.txt", "the lamp") | {"vector": [0.0] * DIMENSION}
    store = holding(settings, lost, text_row("keeper.txt", "the keeper"))
    assert canary_recall(store, COLLECTION, ENCODER, None).missed == ("lamp.txt",)


def test_a_search_that_passes_over_a_row_is_noticed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    store = holding(settings, text_row("lamp.txt", "the lamp"), text_row("keeper.txt", "the keeper"))
    everything = store.search

    def second_best(name: str, vector: np.ndarray[Any, np.dtype[np.float32]], limit: int) -> pa.Table:
        return everything(name, vector, limit + 1).slice(1)

    monkeypatch.setattr(store, "search", second_best)
    assert canary_recall(store, COLLECTION, ENCODER, None).recall == 0
