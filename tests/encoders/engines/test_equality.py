"""The sample and the bounds by which engines are held to the reference; what a machine is known by."""

from pathlib import Path

import numpy as np
import pytest

from tests.encoders.tokenizers import local_tokenizer
from vectorize_pipelines.encoders.engines.equality import compare, sample_texts
from vectorize_pipelines.encoders.hardware import machine


def vectors(rows: int = 6) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(7).normal(size=(rows, 16)).astype(np.float32)


def test_the_same_vectors_agree() -> None:
    agreement = compare(vectors(), vectors())
    assert agreement.equal
    assert agreement.worst_cosine == pytest.approx(1)
    assert "mean cosine 1.000000" in str(agreement)


def test_one_bad_vector_is_enough() -> None:
    wrong = vectors(1000)
    wrong[3] = -wrong[3]
    assert not compare(wrong, vectors(1000)).equal
    wrong = vectors()
    wrong[0, 0] = np.nan
    assert not compare(wrong, vectors()).equal
    assert not compare(vectors(5), vectors(6)).equal


def test_lengths_count() -> None:
    agreement = compare(1.02 * vectors(), vectors())
    assert agreement.worst_cosine == pytest.approx(1)
    assert not agreement.equal
    assert "norms off by 2.0%" in str(agreement)


@pytest.mark.parametrize("max_length", [8, 128, 512, 8192, None])
def test_sample_reaches_every_length(max_length: int | None) -> None:
    texts = sample_texts(max_length)
    assert texts == sample_texts(max_length)
    assert "" in texts
    longest = max(len(text.split()) for text in texts)
    assert longest >= min(max_length or 2048, 2048) // 2
    assert len(texts) < 40


def test_sample_is_truncated_somewhere_and_covers_scripts(cache_directory: Path) -> None:
    tokenizer = local_tokenizer("all-MiniLM-L6-v2", cache_directory=cache_directory)
    counts = [len(ids) for ids in tokenizer.ids(sample_texts(256))]
    assert min(counts) == 2
    assert max(counts) == 256
    joined = "".join(sample_texts(256))
    assert all(character in joined for character in "é医春ع송😀र\u0301")


def test_cpu_has_an_identity() -> None:
    assert machine.cpu_identity() == machine.cpu_identity()
    assert len(machine.cpu_identity()) > 8
    assert machine.physical_cores() >= 1


@pytest.mark.parametrize(
    ("quota", "siblings", "expected"),
    [
        ("max 100000", ["0", "1", "2", "3"], 4),
        ("200000 100000", ["0", "1", "2", "3"], 2),
        ("50000 100000", ["0", "1", "2", "3"], 1),
        ("max 100000", ["0,2", "1,3", "0,2", "1,3"], 2),
        ("", ["", "", "", ""], 4),
    ],
)
def test_cores(monkeypatch: pytest.MonkeyPatch, quota: str, siblings: list[str], expected: int) -> None:
    def read(path: Path) -> str:
        return quota if path.name == "cpu.max" else siblings[int(path.parts[-3].removeprefix("cpu"))]

    monkeypatch.setattr(machine, "_read", read)
    monkeypatch.setattr(machine, "_logical_cores", lambda: [0, 1, 2, 3])
    assert machine.physical_cores() == expected
