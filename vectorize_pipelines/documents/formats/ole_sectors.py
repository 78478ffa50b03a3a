"""The sectors of an OLE file, as workbooks of Excel before 2007 are: whether any chain of them comes back to itself.

The library that reads such workbooks follows a chain until it ends; one that never does would take all memory.
Called by `workbook`.
"""

import struct
from array import array
from collections.abc import Sequence

from vectorize_pipelines.documents.errors import CorruptDocumentError

#: Numbers from here on are marks and no sectors.
_LAST_SECTOR = 0xFFFFFFFA
_HEADER_BYTES = 512
_LISTED_IN_HEADER = 109


def check_chains(content: bytes) -> None:
    """Raise `CorruptDocumentError` for a file whose sectors go round in a circle, or that has no such header."""
    if len(content) < _HEADER_BYTES:
        raise _damaged("its header is cut short")
    (shift,) = struct.unpack_from("<H", content, 30)
    if shift not in (9, 12):
        raise _damaged("its header is wrong")
    first_mini, _, first_list = struct.unpack_from("<3I", content, 60)
    sectors = _Sectors(content, 1 << shift)
    table = sectors.joined(_table_sectors(sectors, first_list))
    _check_circles(table)
    _check_circles(sectors.joined(_chain(table, first_mini)))


class _Sectors:
    """The sectors of a file, each an array of numbers."""

    def __init__(self, content: bytes, size: int):
        self.content, self._size = content, size
        self.count = len(content) // size

    def numbers(self, sector: int) -> Sequence[int]:
        """Return the numbers in a sector, none of one beyond the end of the file."""
        start = (sector + 1) * self._size
        block = self.content[start : start + self._size]
        return struct.unpack(f"<{len(block) // 4}I", block[: len(block) // 4 * 4])

    def joined(self, sectors: Sequence[int]) -> "array[int]":
        """Return the numbers of several sectors, one after the other."""
        if len(sectors) > self.count + _LISTED_IN_HEADER:
            raise _damaged("it lists more sectors than it has")
        found = array("I")
        for sector in sectors:
            found.extend(self.numbers(sector))
        return found


def _table_sectors(sectors: _Sectors, first_list: int) -> list[int]:
    """Return the sectors that hold the table of what follows each sector: of the header, then of a chain of lists."""
    found = [each for each in struct.unpack_from(f"<{_LISTED_IN_HEADER}I", sectors.content, 76) if each < _LAST_SECTOR]
    seen: set[int] = set()
    while first_list < _LAST_SECTOR:
        numbers = sectors.numbers(first_list)
        if first_list in seen or not numbers:
            raise _damaged("the list of its sectors does not end")
        seen.add(first_list)
        found += [each for each in numbers[:-1] if each < _LAST_SECTOR]
        first_list = numbers[-1]
    return found


def _chain(table: "array[int]", sector: int) -> list[int]:
    """Return the sectors of a chain in a table without circles."""
    found: list[int] = []
    while sector < len(table):
        found.append(sector)
        sector = table[sector]
    return found


def _check_circles(table: "array[int]") -> None:
    done = bytearray(len(table))
    for start in range(len(table)):
        path: list[int] = []
        sector = start
        while sector < len(table) and not done[sector]:
            done[sector] = 1
            path.append(sector)
            sector = table[sector]
        if sector < len(table) and done[sector] == 1:
            raise _damaged("its sectors go round in a circle")
        for each in path:
            done[each] = 2


def _damaged(what: str) -> CorruptDocumentError:
    return CorruptDocumentError(f"cannot be read as a workbook ({what}); the file is damaged or cut short, replace it")
