"""Batches on their way through a device: the right vectors in the right order, whatever does not fit into memory."""

import itertools
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vectorize_pipelines.encoders.batching import GROW_AFTER, TokenBudget, remembered_budget
from vectorize_pipelines.encoders.engines.torch.forward import PackedTokens
from vectorize_pipelines.encoders.engines.torch.pipeline import AHEAD, TorchPipeline
from vectorize_pipelines.errors import DeviceMemoryError

LONGEST = 40


def numbers(texts: Sequence[str]) -> list[list[int]]:
    """A tokenizer for texts that are numbers between spaces."""
    return [[int(each) for each in text.split()] for text in texts]


def sums(tokens: PackedTokens) -> torch.Tensor:
    """A forward pass whose vectors tell their text: number of tokens, their sum, the first one."""
    starts = tokens.starts.tolist()
    rows = [tokens.ids[start:end] for start, end in itertools.pairwise(starts)]
    return torch.tensor([[len(row), int(row.sum()), int(row[0])] for row in rows], dtype=torch.float32)


def expected(texts: Sequence[str]) -> np.ndarray:
    rows = [(len(row), sum(row), row[0]) for row in numbers(texts)]
    return np.array(rows, dtype=np.float32).reshape(len(rows), 3)


class SmallDevice:
    """Runs out of memory above `capacity` tokens, and now and then although there would be room."""

    def __init__(self, capacity: int, mishaps: Sequence[bool] = ()) -> None:
        self.capacity = capacity
        self.failed: list[int] = []
        self.passed: list[int] = []
        self._mishaps = list(mishaps)

    def __call__(self, tokens: PackedTokens) -> torch.Tensor:
        mishap = bool(self._mishaps) and self._mishaps.pop() and (not self.failed or bool(self.passed))
        if mishap or tokens.tokens > self.capacity:
            self.failed.append(tokens.tokens)
            self.passed.clear()  # so that no two mishaps follow one another
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.passed.append(tokens.tokens)
        return sums(tokens)


def pipeline(forward: Callable[[PackedTokens], torch.Tensor], budget: int) -> TorchPipeline:
    return TorchPipeline(forward, device="cpu", budget=TokenBudget(budget), padding=None, dimension=3)


texts_of_numbers = st.lists(
    st.lists(st.integers(0, 99), min_size=1, max_size=LONGEST).map(lambda row: " ".join(map(str, row))), max_size=80
)


@settings(max_examples=100, deadline=None)
@given(
    texts=texts_of_numbers,
    budget=st.integers(1, 400),
    capacity=st.integers(LONGEST, 200),
    mishaps=st.lists(st.booleans(), max_size=60),
)
def test_right_vectors_in_the_right_order_whatever_fails(
    texts: list[str], budget: int, capacity: int, mishaps: list[bool]
) -> None:
    device = SmallDevice(capacity, mishaps)
    np.testing.assert_array_equal(pipeline(device, budget).encode(texts, numbers), expected(texts))


@settings(max_examples=50, deadline=None)
@given(texts=texts_of_numbers, budget=st.integers(1, 400), capacity=st.integers(0, LONGEST))
def test_a_text_that_does_not_fit_says_what_to_do(texts: list[str], budget: int, capacity: int) -> None:
    device = SmallDevice(capacity)
    longest = max([0, *(len(row) for row in numbers(texts))])
    if longest <= capacity:
        np.testing.assert_array_equal(pipeline(device, budget).encode(texts, numbers), expected(texts))
    else:
        with pytest.raises(DeviceMemoryError, match=r"alone does not fit into the memory of cpu: .*encoder\.dev"):
            pipeline(device, budget).encode(texts, numbers)


def test_only_the_failed_batch_is_split_and_the_budget_remembered_and_grown() -> None:
    texts = ["1 2 3 4 5 6 7 8"] * 4000
    device = SmallDevice(600)
    budget = TokenBudget(1000)
    runner = TorchPipeline(device, device="cpu", budget=budget, padding=None, dimension=3)
    np.testing.assert_array_equal(runner.encode(texts, numbers), expected(texts))
    assert device.failed[0] == 1000
    assert len(device.failed) < 3 + 4000 * 8 / 500 / GROW_AFTER, "the smaller budget was not remembered"
    device.failed.clear()
    device.capacity = 10_000
    for _ in range(2):
        runner.encode(texts, numbers)
    assert budget.tokens == 1000
    assert device.failed == []


def test_budget_is_remembered_for_the_model_and_the_device() -> None:
    remembered_budget("model", "cuda:0", 1000).failed(1000)
    assert remembered_budget("model", "cuda:0", 1000).tokens == 500
    assert remembered_budget("model", "cuda:1", 1000).tokens == 1000
    assert remembered_budget("other", "cuda:0", 1000).tokens == 1000


def test_a_text_that_fits_once_others_are_done_is_not_given_up() -> None:
    attempts: list[int] = []

    def forward(tokens: PackedTokens) -> torch.Tensor:
        attempts.append(tokens.tokens)
        if len(attempts) == 1:
            raise RuntimeError("CUDA out of memory")
        return sums(tokens)

    np.testing.assert_array_equal(pipeline(forward, 100).encode(["1 2"], numbers), [[2, 3, 1]])
    assert attempts == [2, 2]


def test_other_failures_reach_the_caller_and_end_the_thread() -> None:
    def broken(tokens: PackedTokens) -> torch.Tensor:
        raise RuntimeError("the device is on fire")

    with pytest.raises(RuntimeError, match="the device is on fire"):
        pipeline(broken, 100).encode(["1 2"] * 500, numbers)
    assert "tokenize" not in {thread.name for thread in threading.enumerate()}

    def not_a_number(texts: Sequence[str]) -> list[list[int]]:
        raise ValueError("not a number")

    with pytest.raises(ValueError, match="not a number"):
        pipeline(sums, 100).encode(["1 2"], not_a_number)


def test_texts_are_tokenized_a_bounded_number_of_batches_ahead() -> None:
    tokenized: list[int] = []
    ahead: list[int] = []

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        tokenized.append(len(texts))
        return numbers(texts)

    computed: list[int] = []

    def forward(tokens: PackedTokens) -> torch.Tensor:
        ahead.append(sum(tokenized) - sum(computed))
        computed.append(tokens.texts)
        return sums(tokens)

    pipeline(forward, 2000).encode(["1 2 3 4"] * 20_000, tokenize)
    # 500 texts a batch: those being computed, waiting and being made, two looked ahead, and a window.
    assert max(ahead) <= 500 * (1 + AHEAD + 1 + 2 + 1) + 64
