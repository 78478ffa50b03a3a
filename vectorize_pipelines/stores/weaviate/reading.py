"""Reading of what matches a filter out of a collection of Weaviate, page by page. Called by `store`.

Weaviate's cursor takes no filter, and a query with one returns 10,000 rows at most. So a larger result is read in
pieces: ranges of the objects' UUIDs, which are spread evenly whatever the rows, each small enough for a page. Every row
has one UUID for ever, so none comes twice and none that stays is missed, whatever others write meanwhile.
"""

import itertools
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.stores.weaviate.connection import failures
from vectorize_pipelines.stores.weaviate.filters import conjunction, native_filter

if TYPE_CHECKING:
    from weaviate.collections import Collection as Native

    from vectorize_pipelines.stores.weaviate.filters import Condition

#: How the caller makes a call: with its retries.
Attempt = Callable[[Callable[[], Any]], Any]

#: The server's QUERY_MAXIMUM_RESULTS, unless it was raised.
MOST_ROWS = 10_000
_PAGE_BYTES = 24 * 2**20
#: Of a row without its vector: what is not the vector is mostly text.
_ROW_BYTES = 4_096

#: Pieces are bounded by the first eight hexadecimal digits of a UUID.
_END = 16**8


def page_rows(dimension: int, with_vector: bool, wanted: int) -> int:
    """Return the rows of a page that stays well below the largest message of gRPC."""
    return max(1, min(wanted, MOST_ROWS, _PAGE_BYTES // (_ROW_BYTES + 4 * dimension * with_vector)))


def count(native: "Native[Any, Any]", where: "Condition", attempt: Attempt) -> int:
    """Return how many rows match."""
    if where is False:
        return 0
    filters = native_filter(where)
    return int(attempt(lambda: native.aggregate.over_all(total_count=True, filters=filters)).total_count or 0)


class PageReader:
    """Pages of the rows that match, each a list of objects with these properties."""

    def __init__(
        self,
        native: "Native[Any, Any]",
        where: "Condition",
        properties: Sequence[str],
        with_vector: bool,
        rows: int,
        attempt: Attempt,
    ) -> None:
        self._native, self._where, self._attempt = native, where, attempt
        self._properties, self._with_vector = list(properties), with_vector
        self._rows = rows

    def pages(self) -> Iterator[list[Any]]:
        """Yield every matching row once, whatever their number."""
        if self._where is False:
            return
        pages = self._all() if self._where is True else self._matching()
        yield from (page for page in pages if page)

    def _all(self) -> Iterator[list[Any]]:
        last = uuid.UUID(int=0)
        while True:
            rows, page = self._queried(after=last)
            yield page
            if len(page) < rows:
                return
            last = uuid.UUID(str(page[-1].uuid))

    def _matching(self) -> Iterator[list[Any]]:
        rows, page = self._queried(filters=native_filter(self._where))
        if len(page) < rows:
            yield page
            return
        total = count(self._native, self._where, self._attempt)
        # Pieces of equal width hold about equally many rows; those that hold too many are halved.
        waiting = list(pieces(max(1, math.ceil(total / rows * 1.5))))
        while waiting:
            start, end = waiting.pop()
            rows, page = self._queried(filters=native_filter(conjunction([self._where, between(start, end)])))
            if len(page) < rows or end - start == 1:
                yield page
            else:
                middle = (start + end) // 2
                waiting += [(middle, end), (start, middle)]

    def _queried(self, **restriction: Any) -> tuple[int, list[Any]]:
        """Return a page, and how many rows it could have had: fewer each time that one is too large for a message."""
        while True:
            try:
                found = self._attempt(
                    lambda: self._native.query.fetch_objects(
                        limit=self._rows,
                        return_properties=self._properties,
                        include_vector=self._with_vector,
                        **restriction,
                    )
                )
            except failures() as error:
                if self._rows == 1 or "larger than max" not in str(error):
                    raise
                self._rows //= 2
            else:
                return self._rows, found.objects


def between(start: int, end: int) -> "Condition":
    """Return the condition that an object's UUID begins with a number in this range, of 16**8."""
    from weaviate.classes.query import Filter

    identity = Filter.by_property("_id")
    sides: list[Condition] = [identity.greater_or_equal(f"{start:08x}")]
    if end < _END:
        sides.append(identity.less_than(f"{end:08x}"))
    return conjunction(sides)


def pieces(number: int) -> Iterator[tuple[int, int]]:
    """Return so many ranges of UUIDs, for `between`, that together hold all."""
    bounds = [index * _END // number for index in range(number + 1)]
    return itertools.pairwise(bounds)
