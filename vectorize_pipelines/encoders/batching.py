"""Cutting texts into batches by tokens, and what to do when one does not fit into memory.

Engines pull batches from `token_batches` while earlier ones are being computed, so tokenizing overlaps with
inference. Nothing here knows an engine.
"""

import heapq
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TokenMatrix: TypeAlias = "npt.NDArray[np.int64]"
Tokenize = Callable[[Sequence[str]], list[list[int]]]

#: Texts tokenized at a time: enough to sort by length, few enough not to keep inference waiting.
WINDOW = 64

#: Where batches are large, as many more: a window of texts of this length makes a batch.
WINDOW_TEXT_TOKENS = 32

#: Texts, and batches' worth of tokens, that lie tokenized before the longest of them are cut into a batch.
LOOK_AHEAD = 192
LOOK_AHEAD_BATCHES = 2

#: Successful batches after which a budget that memory had forced down is doubled again.
GROW_AFTER = 50

#: No batch is cut smaller than this to spread work over several streams: a seventh of the speed is lost by then.
SMALLEST_SHARE = 256

#: The last batches of several streams are cut down to this, so that none of the streams waits long for another.
SMALLEST_LAST = 512


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Texts that go through the model together, longest first.

    positions  of the texts in the caller's input
    ids        token ids of each, special tokens included
    """

    positions: list[int]
    ids: list[list[int]]

    @property
    def size(self) -> int:
        """The tokens, padding included: what a budget counts."""
        return len(self.ids) * self.longest

    @property
    def longest(self) -> int:
        """The tokens of the longest text, at least one."""
        return max(1, *(len(ids) for ids in self.ids))

    def padded(self, padding: int, width: int | None = None) -> tuple[TokenMatrix, TokenMatrix]:
        """Return token ids and attention mask, both int64, (texts, width); by default the longest text's width."""
        import numpy as np

        shape = (len(self.ids), self.longest if width is None else width)
        tokens = np.full(shape, padding, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, ids in enumerate(self.ids):
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        return tokens, mask

    def halves(self) -> tuple["TokenBatch", "TokenBatch"]:
        """Return the batch in two, for when it did not fit into memory."""
        middle = (len(self.ids) + 1) // 2
        return (
            TokenBatch(self.positions[:middle], self.ids[:middle]),
            TokenBatch(self.positions[middle:], self.ids[middle:]),
        )


class TokenBudget:
    """Tokens that one batch may have, padding included; adapts to memory. Thread-safe.

    A batch that ran out of memory halves it; it grows back towards where it started.
    """

    def __init__(self, tokens: int) -> None:
        self._start = tokens
        self._tokens = tokens
        self._successes = 0
        self._lock = threading.Lock()

    @property
    def tokens(self) -> int:
        return self._tokens

    def failed(self, tokens: int) -> None:
        """Note that a batch of `tokens` tokens did not fit."""
        with self._lock:
            self._tokens = max(1, min(self._tokens, tokens // 2))
            self._successes = 0

    def succeeded(self) -> None:
        """Note that a batch went through."""
        with self._lock:
            self._successes += 1
            if self._successes >= GROW_AFTER and self._tokens < self._start:
                self._tokens = min(self._start, 2 * self._tokens)
                self._successes = 0


class SharedBatches:
    """Batches for several threads. Whichever asks next makes the next batch, while others compute theirs."""

    def __init__(self, batches: Iterator[TokenBatch]) -> None:
        self._batches = batches
        self._lock = threading.Lock()
        self._stopped = False

    def next(self) -> TokenBatch | None:
        """Return the next batch; None when there are no more."""
        with self._lock:
            return None if self._stopped else next(self._batches, None)

    def stop(self) -> None:
        """Hand out no further batches: one of the threads failed."""
        self._stopped = True


def token_batches(
    texts: Sequence[str], tokenize: Tokenize, budget: TokenBudget, *, streams: int = 1, count_step: int = 1
) -> Iterator[TokenBatch]:
    """Yield batches of `texts`, roughly longest first, each as full as the budget allows.

    Longest first: memory is at its highest at the start, and the last batches, which keep only some streams
    busy, are the short ones. The texts' order is guessed from their bytes and corrected by `LOOK_AHEAD`
    tokenized texts, the first batches excepted, which nobody is to wait for. A text longer than the budget is a
    batch of its own. With several `streams`, input that would fill few batches is spread over them, and the last
    batches of more become smaller and smaller, so that none of the streams waits long for another. Batches of at
    least twice `count_step` texts hold a multiple of it, though the budget allows some more.
    """
    sizes = [_bytes(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda position: -sizes[position])
    remaining = sum(sizes) // 4  # tokens, about: in most languages one has 3 to 5 bytes
    smallest = min(SMALLEST_LAST, max(SMALLEST_SHARE, remaining // (2 * streams)))
    waiting: list[tuple[int, int, list[int]]] = []  # a heap: the longest first
    waiting_tokens = 0
    taken = made = 0
    while taken < len(order) or waiting:
        share = max(smallest, remaining // (2 * streams)) if streams > 1 else budget.tokens
        tokens = min(budget.tokens, share)
        look_ahead = min(LOOK_AHEAD, WINDOW * (made + 1))
        while taken < len(order) and (len(waiting) < look_ahead or waiting_tokens < LOOK_AHEAD_BATCHES * tokens):
            window = order[taken : taken + max(WINDOW, tokens // WINDOW_TEXT_TOKENS)]
            taken += len(window)
            for position, ids in zip(window, tokenize([texts[each] for each in window]), strict=True):
                heapq.heappush(waiting, (-len(ids), position, ids))
                waiting_tokens += len(ids)
        batch = _longest(waiting, tokens, count_step)
        waiting_tokens -= sum(len(ids) for ids in batch.ids)
        remaining -= sum(sizes[position] for position in batch.positions) // 4
        made += 1
        yield batch


def _longest(waiting: list[tuple[int, int, list[int]]], budget: int, count_step: int) -> TokenBatch:
    longest = max(1, len(waiting[0][2]))
    count = min(max(1, budget // longest), len(waiting))
    if count >= 2 * count_step:
        count -= count % count_step
    taken = [heapq.heappop(waiting) for _ in range(count)]
    return TokenBatch([position for _, position, _ in taken], [ids for _, _, ids in taken])


_budgets: dict[tuple[str, str, int], TokenBudget] = {}
_budgets_lock = threading.Lock()


def remembered_budget(model: str, device: str, tokens: int) -> TokenBudget:
    """Return the process's budget for a model on a device: what memory taught one encoder of it, the next one knows.

    model   the model's revision
    tokens  where it starts, and what it grows back to
    """
    with _budgets_lock:
        return _budgets.setdefault((model, device, tokens), TokenBudget(tokens))


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def out_of_memory(error: BaseException) -> bool:
    """Return whether an engine failed for want of memory, which torch and OpenVINO report as a RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return True
    message = str(error).lower()
    return any(word in message for word in ("bad_alloc", "alloc", "out of memory"))
