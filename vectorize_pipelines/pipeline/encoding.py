"""Encodes items, each content once. Called by the streams in their encoding threads."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from math import inf
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vectorize_pipelines.core.items import Item
from vectorize_pipelines.encoders.base import Encoder, Metered, TokenCount
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.pipeline.reuse import VectorReuse, content_key
from vectorize_pipelines.pipeline.totals import Totals

#: Lends the encoder of a model, by its name and the number of dimensions that its vectors are cut to (None: uncut).
LeaseEncoder: TypeAlias = Callable[[str, int | None], AbstractContextManager[Encoder]]

#: Sizes of batches, unless the settings want them smaller: of the first one, and of those that take too long.
FIRST_BATCH = 128
SMALLEST_BATCH = 32


class ItemEncoder:
    """The encoder of one model, leased when there is first something to encode, and what it need not encode again.

    Used by one thread. `rows_together` is the number of items that the encoder takes about `seconds_per_batch` for,
    at most `most_rows`; it follows what batches took. `seconds_per_row` is what the last one took, infinite before.
    """

    def __init__(
        self,
        dimension: int,
        lease_encoder: Callable[[], AbstractContextManager[Encoder]],
        reuse: VectorReuse,
        *,
        most_rows: int,
        seconds_per_batch: float,
    ):
        self.dimension = dimension
        self.encoder: Encoder | None = None
        self.rows_together = min(FIRST_BATCH, most_rows)
        self.seconds_per_row = inf
        self._lease_encoder = lease_encoder
        self._reuse = reuse
        self._most_rows = most_rows
        self._seconds_per_batch = seconds_per_batch
        self._leases = ExitStack()

    def open(self) -> None:
        """Lease the encoder, unless that has been done."""
        if self.encoder is None:
            self.encoder = self._leases.enter_context(self._lease_encoder())

    def close(self) -> None:
        """Give the encoder back and let go of the cache; a second call does nothing."""
        self._reuse.close()
        self._leases.close()

    def encode(
        self,
        items: Sequence[Item],
        days: Sequence[str],
        totals: Totals,
        encoded: Callable[[Sequence[int]], None] | None = None,
        counts: dict[int, TokenCount] | None = None,
    ) -> tuple[npt.NDArray[np.float32], dict[int, ItemError]]:
        """Return vectors of shape (n, dimension), and by position what the encoder refused: vectors without meaning.

        What was done and how long it took is added to `totals`, each item's share to its day. With `encoded` the
        encoder takes one batch after the other, and that is called with the positions of each. The tokens of texts
        that were encoded are put into `counts`, by position.
        """
        before = self._reuse.seconds
        vectors = np.empty((len(items), self.dimension), dtype=np.float32)
        refused = self._fill(items, days, vectors, totals, encoded, counts) if items else {}
        totals.spread("cache", self._reuse.seconds - before, Counter(days))
        return vectors, refused

    def cache(self, items: Sequence[Item], vectors: npt.NDArray[np.float32]) -> None:
        """Put vectors of shape (n, dimension) into the embedding cache, unless it is off. Called from any thread."""
        self._reuse.cache_once({content_key(item): (item, vector) for item, vector in zip(items, vectors, strict=True)})

    def _fill(
        self,
        items: Sequence[Item],
        days: Sequence[str],
        vectors: npt.NDArray[np.float32],
        totals: Totals,
        encoded: Callable[[Sequence[int]], None] | None,
        counts: dict[int, TokenCount] | None,
    ) -> dict[int, ItemError]:
        """Fill in the vectors, each content encoded once; return, by position, what the encoder refused.

        A refusal is not shared, nor is the vector of a file that has changed meanwhile: the items of the same content
        are encoded by themselves then, and those refused have each its own error.
        """
        waiting: dict[bytes, list[int]] = {}
        for n, item in enumerate(items):
            waiting.setdefault(content_key(item), []).append(n)
        self._take_known(days, waiting, vectors, totals)
        if encoded is not None:
            unknown = {n for positions in waiting.values() for n in positions}
            encoded([n for n in range(len(items)) if n not in unknown])
        if not waiting:
            return {}
        firsts = [positions[0] for positions in waiting.values()]
        refused, seconds = self._encode(items, days, firsts, vectors, totals, encoded, counts)
        new = {
            key: (items[positions[0]], vectors[positions[0]].copy())
            for key, positions in waiting.items()
            if positions[0] not in refused
        }
        shareable = self._reuse.cache(new, seconds)
        apart: list[int] = []
        for key, (first, *others) in waiting.items():
            if key in shareable:
                _share(days, others, vectors, vectors[first], totals)
            else:
                apart += others
        if apart:
            refused |= self._encode(items, days, apart, vectors, totals, encoded, counts)[0]
        return refused

    def _take_known(
        self, days: Sequence[str], waiting: dict[bytes, list[int]], vectors: npt.NDArray[np.float32], totals: Totals
    ) -> None:
        """Fill in what the run or the cache has, and take it out of `waiting` (positions by content)."""
        recent = self._reuse.recent(list(waiting))
        cached = self._reuse.cached([key for key in waiting if key not in recent])
        for key, vector in recent.items():
            _share(days, waiting.pop(key), vectors, vector, totals)
        for key, vector in cached.items():
            first, *others = waiting.pop(key)
            vectors[first] = vector
            totals.of(days[first]).cache_hits += 1
            _share(days, others, vectors, vector, totals)

    def _encode(
        self,
        items: Sequence[Item],
        days: Sequence[str],
        positions: Sequence[int],
        vectors: npt.NDArray[np.float32],
        totals: Totals,
        encoded: Callable[[Sequence[int]], None] | None,
        counts: dict[int, TokenCount] | None,
    ) -> tuple[dict[int, ItemError], float]:
        """Encode the items at these positions; return, by position, what the encoder refused, and the seconds taken."""
        self.open()
        refused: dict[int, ItemError] = {}
        seconds = 0.0
        for part in [positions] if encoded is None else self._parts(positions):
            errors, taken = self._encode_together(items, days, part, vectors, totals, counts)
            refused |= errors
            seconds += taken
            if encoded is not None:
                encoded(part)
        return refused, seconds

    def _parts(self, positions: Sequence[int]) -> Iterator[Sequence[int]]:
        """Yield a batch after the other; how long one takes decides on the size of the next."""
        begin = 0
        while begin < len(positions):
            end = begin + self.rows_together
            if len(positions) - end < self.rows_together // 2:
                end = len(positions)  # what is left would be too little for a batch of its own
            yield positions[begin:end]
            begin = end

    def _encode_together(
        self,
        items: Sequence[Item],
        days: Sequence[str],
        positions: Sequence[int],
        vectors: npt.NDArray[np.float32],
        totals: Totals,
        counts: dict[int, TokenCount] | None,
    ) -> tuple[dict[int, ItemError], float]:
        """As `_encode`, in one call of the encoder."""
        assert self.encoder is not None, "it is open"
        started = time.perf_counter()
        contents = [_content(items[n]) for n in positions]
        metered = self.encoder.encode_metered(contents)
        vectors[positions] = metered.vectors
        seconds = time.perf_counter() - started
        tokens = metered.tokens or [items[n].tokens for n in positions]
        if counts is not None:
            counted = _counts(self.encoder, metered, contents)
            counts.update(zip(positions, counted, strict=True))
            tokens = metered.tokens or [count.seen for count in counted]
        for place, n in enumerate(positions):
            of_day = totals.of(days[n])
            of_day.encode_seconds += seconds / len(positions)
            if place not in metered.errors:
                of_day.encoded += 1
                of_day.tokens += tokens[place]
        if metered.tokens is not None:
            _spread_cost(metered.cost, metered.tokens, [days[n] for n in positions], totals)
        self._adapt(len(positions), seconds)
        return {positions[place]: error for place, error in metered.errors.items()}, seconds

    def _adapt(self, rows: int, seconds: float) -> None:
        """Size the batches to come by how long this one took."""
        if rows < self.rows_together // 2:
            return  # too few to tell
        self.seconds_per_row = seconds / rows
        fitting = int(rows * self._seconds_per_batch / max(seconds, 1e-3))
        self.rows_together = min(self._most_rows, max(SMALLEST_BATCH, min(fitting, 4 * self.rows_together)))


def _spread_cost(cost: float, tokens: Sequence[int], days: Sequence[str], totals: Totals) -> None:
    """Add to each day its part of what some items cost together, by their tokens."""
    all_tokens = max(1, sum(tokens))
    for day, number in zip(days, tokens, strict=True):
        totals.of(day).cost += cost * number / all_tokens


def _share(
    days: Sequence[str],
    positions: Sequence[int],
    vectors: npt.NDArray[np.float32],
    vector: npt.NDArray[np.float32],
    totals: Totals,
) -> None:
    """Give these positions the vector of another item."""
    for n in positions:
        vectors[n] = vector
        totals.of(days[n]).deduplicated += 1


def _counts(encoder: Encoder, metered: Metered, contents: Sequence[str | Path | bytes]) -> Sequence[TokenCount]:
    """Return the tokens of texts that were encoded: as the engine or the provider counted them, else words."""
    if metered.counts is not None:
        return metered.counts
    texts = [content for content in contents if isinstance(content, str)]
    return [TokenCount(tokens, 0) for tokens in metered.tokens or encoder.count_tokens(texts)]


def _content(item: Item) -> str | Path | bytes:
    content = item.content if item.text is None else item.text
    if content is None:
        raise ValueError(f"{item.source_id} has neither text nor content to encode")
    return content
