"""The records that are certainly new to a LanceDB table: they can be appended, without a search for their ids.

Called by `LanceDBStore`, which holds the table's lock meanwhile. It is certain of records where it saw the table
empty, every commit since then was its own, and it has written none of their ids since. Anything else is not known,
and a merge has to find out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vectorize_pipelines.stores.lancedb.commits import commit_of, listing

# Six bits of one word for each id. Filters of 1, 4 and 16 MiB, one after the other, since the first touch of a page
# costs as much as looking for some ids. Each takes an id for four words, the last one all that come then. Of batches of
# 2,048 new ids 1 in 25 is taken for known at 2,000,000 ids, every third at 3,500,000.
_FILTER_WORDS = (2**17, 2**19, 2**21)
_BITS_PER_ID = 6
_TABLES = 4


class WrittenIds:
    """Bloom filters: they never take an id that was written for a new one, and rarely a new one for written."""

    def __init__(self) -> None:
        self._filters = [np.zeros(_FILTER_WORDS[0], np.uint64)]
        self._in_last = 0

    def add(self, ids: pa.ChunkedArray) -> bool:
        """Count the ids as written, and return whether certainly none of them was."""
        if 4 * self._in_last >= len(self._filters[-1]) and len(self._filters) < len(_FILTER_WORDS):
            self._filters.append(np.zeros(_FILTER_WORDS[len(self._filters)], np.uint64))
            self._in_last = 0
        hashes, bits = _hashed(ids)
        known = any(bool(((each[_words(hashes, each)] & bits) == bits).any()) for each in self._filters)
        np.bitwise_or.at(self._filters[-1], _words(hashes, self._filters[-1]), bits)
        self._in_last += len(ids)
        return not known


@dataclass(slots=True)
class Followed:
    """A table whose lock is held, open at its newest version.

    ids      what the table may hold; None where that is not known
    version  the version that the caller has committed, where it has said so; else the table is asked
    """

    table: Any
    ids: WrittenIds | None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class _Left:
    """A table as this store left it, still open: opening and asking it goes through LanceDB's event loop each time.

    versions  the listing of its versions
    """

    table: Any
    version: int
    commit: bytes
    versions: tuple[int, int] | None
    ids: WrittenIds


class NewIds:
    """The ids that this store has written to the tables of a directory that it saw empty; `None`: no directory."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._left: dict[str, _Left] = {}

    @contextmanager
    def followed(self, name: str, opened: Callable[[str], Any]) -> Iterator[Followed]:
        """Hold the table, which `opened` opens unless nothing was done to it since this store committed last.

        What is committed within is the store's own doing, if the caller adds the ids that it writes. Where that ends
        with an exception the table's ids are not known any more.
        """
        followed = self._followed(name, self._left.pop(name, None), opened)
        yield followed
        if followed.ids is not None:
            self._leave(name, followed, followed.ids)

    def forget(self, name: str) -> None:
        """Close a table that is gone."""
        self._left.pop(name, None)

    def close(self) -> None:
        """Close all of them."""
        self._left.clear()

    def _followed(self, name: str, left: _Left | None, opened: Callable[[str], Any]) -> Followed:
        if left is not None and self._is_untouched(name, left):
            return Followed(left.table, left.ids)
        table = opened(name)
        if left is not None and self._commit(name, table.version) == left.commit:
            return Followed(table, left.ids)
        unknown = self._directory is None or table.count_rows() > 0
        return Followed(table, None if unknown else WrittenIds())

    def _is_untouched(self, name: str, left: _Left) -> bool:
        """Return whether no version was added or removed since, by anybody: a removal may hide what was added."""
        if self._directory is None or listing(self._directory, name) != left.versions:
            return False
        return self._commit(name, left.version + 1) is None  # which may be of the same tick of the clock

    def _leave(self, name: str, followed: Followed, ids: WrittenIds) -> None:
        version = followed.table.version if followed.version is None else followed.version
        commit = self._commit(name, version)
        if commit is not None and self._directory is not None:
            self._left[name] = _Left(followed.table, version, commit, listing(self._directory, name), ids)
            for forgotten in list(self._left)[:-_TABLES]:
                self._left.pop(forgotten, None)

    def _commit(self, name: str, version: int) -> bytes | None:
        return None if self._directory is None else commit_of(self._directory, name, version)


def _hashed(ids: pa.ChunkedArray) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return what chooses each id's word in a filter, and its bits there."""
    # Python's own hash differs between processes, and this does not leave this one.
    hashes = np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids)).view(np.uint64)
    bits = np.zeros(len(ids), np.uint64)
    for place in range(_BITS_PER_ID):
        bits |= np.uint64(1) << (hashes >> np.uint64(6 * place) & np.uint64(63))
    return hashes >> np.uint64(6 * _BITS_PER_ID), bits


def _words(hashes: npt.NDArray[np.uint64], filter_: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return hashes % np.uint64(len(filter_))
