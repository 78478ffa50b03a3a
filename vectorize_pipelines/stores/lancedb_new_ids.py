"""Tells which records are certainly new to a LanceDB table: they can be appended, without a search for their ids.

Called by `LanceDBStore`, which holds the table's lock meanwhile. It is certain of records where it saw the table
empty, every commit since then was its own, and it has written none of their ids since. Anything else is not known,
and a merge has to find out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vectorize_pipelines.stores.lancedb_commits import commit_of

# Six bits of one word for each id. In 16 MiB, of batches of 2,048 new ids 1 in 25 is taken for known at 2,000,000 ids,
# every third at 3,500,000.
_FILTER_WORDS = 2**21
_BITS_PER_ID = 6
_TABLES = 4


class WrittenIds:
    """A Bloom filter: it never takes an id that was written for a new one, and rarely a new one for written."""

    def __init__(self) -> None:
        self._words = np.zeros(_FILTER_WORDS, np.uint64)

    def add(self, ids: pa.ChunkedArray) -> bool:
        """Counts the ids as written, and says whether certainly none of them was."""
        words, bits = _places(ids)
        known = bool(((self._words[words] & bits) == bits).any())
        np.bitwise_or.at(self._words, words, bits)
        return not known


class NewIds:
    """What this store has written to the tables of a directory that it saw empty; `None` stands for no directory."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._known: dict[str, tuple[bytes, WrittenIds]] = {}

    @contextmanager
    def followed(self, table: Any) -> Iterator[WrittenIds | None]:
        """The ids that the table may hold, None where they are not known.

        What is committed within is the store's own doing, if the caller adds the ids that it writes. Where that ends
        with an exception the table's ids are not known any more.
        """
        commit, ids = self._known.pop(table.name, (None, None))
        if commit is None or commit != self._commit(table):
            ids = WrittenIds() if self._directory and table.count_rows() == 0 else None
        yield ids
        commit = None if ids is None else self._commit(table)
        if ids is not None and commit is not None:
            self._known[table.name] = (commit, ids)
            for forgotten in list(self._known)[:-_TABLES]:
                self._known.pop(forgotten, None)

    def _commit(self, table: Any) -> bytes | None:
        return None if self._directory is None else commit_of(self._directory, table.name, table.version)


def _places(ids: pa.ChunkedArray) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The word of the filter that each id goes to, and its bits in it."""
    # Python's own hash differs between processes, and this does not leave this one.
    hashes = np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids)).view(np.uint64)
    bits = np.zeros(len(ids), np.uint64)
    for place in range(_BITS_PER_ID):
        bits |= np.uint64(1) << (hashes >> np.uint64(6 * place) & np.uint64(63))
    return (hashes >> np.uint64(6 * _BITS_PER_ID)) % np.uint64(_FILTER_WORDS), bits
