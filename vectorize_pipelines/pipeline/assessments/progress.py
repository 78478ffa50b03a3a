"""Which messages of a partition are done, where they are done in another order than they were read.

A group's committed offset says only up to where everything is done. What is done behind it is told in the metadata of
that offset, which the transaction of the results commits with it: a later run then knows of every single message
whether its result is in the topic. Used by `window`, under its lock.
"""

import base64
import binascii
from collections import OrderedDict

#: The furthest that reading goes ahead of what is done in order. A broker takes metadata of 4,096 bytes by default
#: (`offset.metadata.max.bytes`), and these are at most 2,734.
MOST_OFFSETS_AHEAD = 16_384
#: The form of the metadata.
_FORM = "1:"


class PartitionProgress:
    """The offsets of one partition that were read, and those of them that are done.

    position  the next offset to read
    """

    def __init__(self, position: int):
        self.position = position
        # In the order of the offsets, in which they are read: the first is the lowest.
        self._pending: OrderedDict[int, None] = OrderedDict()

    @property
    def finished(self) -> int:
        """Return the offset before which everything is done."""
        return next(iter(self._pending), self.position)

    @property
    def has_room(self) -> bool:
        """Return whether reading may go on."""
        return self.position - self.finished < MOST_OFFSETS_AHEAD

    def read(self, offset: int) -> None:
        """Note a message that is to be dealt with; offsets come in rising order."""
        self._pending[offset] = None
        self.position = offset + 1

    def pass_to(self, position: int) -> None:
        """Note that reading stands here; what lies before and is no message needs nothing."""
        self.position = max(self.position, position)

    def finish(self, offset: int) -> None:
        """Note that a message which was read is done."""
        del self._pending[offset]

    def metadata(self) -> str:
        """Return what is done behind `finished`, for `FinishedOffsets.parse`; empty where nothing is."""
        first = self.finished
        bits = bytearray(b"\xff" * ((self.position - first + 7) // 8))
        for offset in range(self.position, first + 8 * len(bits)):
            _clear(bits, offset - first)
        for offset in self._pending:
            _clear(bits, offset - first)
        shown = bits.rstrip(b"\x00")
        return _FORM + base64.b64encode(shown).decode() if shown else ""


class FinishedOffsets:
    """The messages of a partition that earlier runs have done, behind the offset that they committed."""

    def __init__(self, first: int, bits: bytes):
        self._first = first
        self._bits = bits

    @classmethod
    def parse(cls, committed: int, metadata: str | None) -> "FinishedOffsets":
        """Return those in the metadata of a committed offset.

        None where the metadata is of another form: somebody else set the offset, and wants what lies behind it again.
        """
        if not metadata or not metadata.startswith(_FORM):
            return cls(committed, b"")
        try:
            return cls(committed, base64.b64decode(metadata[len(_FORM) :], validate=True))
        except binascii.Error:
            return cls(committed, b"")

    def __contains__(self, offset: int) -> bool:
        place = offset - self._first
        return 0 <= place < 8 * len(self._bits) and bool(self._bits[place // 8] & (1 << place % 8))


def _clear(bits: bytearray, place: int) -> None:
    bits[place // 8] &= ~(1 << place % 8) & 0xFF
