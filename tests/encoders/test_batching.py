"""Batches cut by tokens: nothing lost, nothing twice, never over the budget, little padding; memory failures."""

import random
import threading
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vectorize_pipelines.encoders.batching import (
    GROW_AFTER,
    SMALLEST_LAST,
    SMALLEST_SHARE,
    WINDOW,
    SharedBatches,
    TokenBatch,
    TokenBudget,
    out_of_memory,
    token_batches,
)


def words(texts: Sequence[str]) -> list[list[int]]:
    """A tokenizer for tests: one token for each word, and two around them."""
    return [[1, *(len(word) for word in text.split()), 2] for text in texts]


def texts_of(lengths: Sequence[int]) -> list[str]:
    return ["word " * length for length in lengths]


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), max_size=300),
    budget=st.integers(1, 4096),
    streams=st.integers(1, 4),
    count_step=st.integers(1, 20),
)
def test_every_text_is_in_one_batch_within_the_budget(
    lengths: list[int], budget: int, streams: int, count_step: int
) -> None:
    made = token_batches(texts_of(lengths), words, TokenBudget(budget), streams=streams, count_step=count_step)
    batches = list(made)
    assert sorted(position for batch in batches for position in batch.positions) == list(range(len(lengths)))
    for batch in batches:
        sizes = [len(ids) for ids in batch.ids]
        assert sizes == [lengths[position] + 2 for position in batch.positions]
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) == 1 or sizes[0] * len(sizes) <= budget
        assert len(sizes) < 2 * count_step or len(sizes) % count_step == 0


def test_padding_is_small_and_the_longest_come_first() -> None:
    lengths = [random.Random(7).randint(1, 250) for _ in range(1000)]
    batches = list(token_batches(texts_of(lengths), words, TokenBudget(2048)))
    padded = sum(batch.padded(0)[0].size for batch in batches)
    assert padded < 1.05 * sum(length + 2 for length in lengths)
    longest = [len(batch.ids[0]) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_short_texts_make_few_shapes() -> None:
    def shapes(count_step: int) -> int:
        found = set[tuple[int, int]]()
        for seed in range(20):
            texts = texts_of(
                [round(random.Random(n).triangular(4, 16, 8)) for n in range(1000 * seed, 1000 * seed + 999)]
            )
            for batch in token_batches(texts, words, TokenBudget(2048), streams=2, count_step=count_step):
                found.add((len(batch.ids), batch.longest))
        return len(found)

    assert shapes(16) < shapes(1) / 2


def test_longest_first_where_bytes_are_a_bad_guess() -> None:
    texts = ["x" * 500] * 300 + ["a b c d e f g h"] * 300
    batches = list(token_batches(texts, words, TokenBudget(100)))
    assert sorted(position for batch in batches for position in batch.positions) == list(range(600))


def test_texts_are_tokenized_as_batches_are_asked_for() -> None:
    seen: list[int] = []

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        seen.append(len(texts))
        return words(texts)

    batches = token_batches(texts_of([100] * 2000), tokenize, TokenBudget(2048))
    next(batches)
    assert sum(seen) < 500
    assert sum(len(batch.positions) for batch in batches) == 2000 - 2048 // 102


def test_little_work_is_spread_over_the_streams() -> None:
    texts = texts_of([150] * 8)
    assert len(list(token_batches(texts, words, TokenBudget(2048), streams=1))) == 1
    assert len(list(token_batches(texts, words, TokenBudget(2048), streams=2))) == 4
    short = texts_of([3] * 8)
    assert len(list(token_batches(short, words, TokenBudget(2048), streams=4))) == 1, SMALLEST_SHARE


def test_the_last_batches_become_smaller_so_that_the_streams_end_together() -> None:
    sizes = [batch.size for batch in token_batches(texts_of([100] * 400), words, TokenBudget(2048), streams=2)]
    assert sizes[0] > 1900
    assert all(later <= earlier for earlier, later in pairwise(sizes))
    assert sizes[-1] <= SMALLEST_LAST
    assert sizes[-3] >= SMALLEST_LAST // 2, "smaller ones cost more than the wait"


def test_the_first_batch_waits_for_few_texts_to_be_tokenized() -> None:
    seen: list[int] = []

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        seen.append(len(texts))
        return words(texts)

    next(token_batches(texts_of([100] * 400), tokenize, TokenBudget(2048), streams=2))
    assert sum(seen) == WINDOW


def test_padding_and_mask() -> None:
    tokens, mask = TokenBatch([4, 9], [[5, 6, 7], [8]]).padded(3)
    np.testing.assert_array_equal(tokens, [[5, 6, 7], [8, 3, 3]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 0, 0]])
    assert tokens.dtype == mask.dtype == np.int64
    assert TokenBatch([0], [[]]).padded(3)[0].shape == (1, 1)
    wider, mask = TokenBatch([4, 9], [[5, 6, 7], [8]]).padded(3, width=5)
    np.testing.assert_array_equal(wider, [[5, 6, 7, 3, 3], [8, 3, 3, 3, 3]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])


def test_halves() -> None:
    first, second = TokenBatch([1, 2, 3], [[7], [8], [9]]).halves()
    assert (first, second) == (TokenBatch([1, 2], [[7], [8]]), TokenBatch([3], [[9]]))


def test_budget_shrinks_and_grows_back() -> None:
    budget = TokenBudget(2048)
    budget.failed(2000)
    assert budget.tokens == 1000
    budget.failed(1)
    assert budget.tokens == 1
    for _ in range(GROW_AFTER - 1):
        budget.succeeded()
    assert budget.tokens == 1
    for _ in range(20 * GROW_AFTER):
        budget.succeeded()
    assert budget.tokens == 2048


def test_shared_batches_reach_each_thread_once_and_stop() -> None:
    shared = SharedBatches(token_batches(texts_of([5] * 400), words, TokenBudget(21)))
    taken: list[list[int]] = [[] for _ in range(4)]

    def take(mine: list[int]) -> None:
        while (batch := shared.next()) is not None:
            mine.extend(batch.positions)

    threads = [threading.Thread(target=take, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(position for mine in taken for position in mine) == list(range(400))
    stopped = SharedBatches(token_batches(texts_of([5] * 4), words, TokenBudget(7)))
    assert stopped.next() is not None
    stopped.stop()
    assert stopped.next() is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_out_of_memory(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected
