"""Which messages of a partition are done, where they are done in another order than they were read.

A group's committed offset says only up to where everything is done. What is done behind it is told in the metadata of
that offset, which the transaction of the results commits with it: a later run then knows of every single message
whether its result is in the topic. Used by `window`, under its lock.

The metadata say where reading stood, and which of the offsets before were not done: what is no message (marks of
transactions, what was aborted or deleted) takes no place in them, however much of it there is.
"""

import base64
import binascii
from collections import OrderedDict
from collections.abc import Mapping

#: A broker takes metadata of so many characters by default: fewer than its `offset.metadata.max.bytes`.
MOST_CHARACTERS = 4095
#: Offsets are told in blocks of so many, each as the number of blocks that are passed over, and one bit an offset.
BLOCK_OFFSETS = 128
_BLOCK_BYTES = BLOCK_OFFSETS // 8
#: Seven bits of a number are in a byte; an offset has 63, the number of a block 56.
_OFFSET_BYTES, _NUMBER_BYTES = 9, 8
#: The form of the metadata.
_FORM = "2:"
_MOST_BYTES = (MOST_CHARACTERS - len(_FORM)) // 4 * 3
#: Blocks with messages that are not done, at most: their metadata always fit.
MOST_BLOCKS = (_MOST_BYTES - _OFFSET_BYTES) // (_NUMBER_BYTES + _BLOCK_BYTES)


class FinishedOffsets:
    """The messages of a partition that earlier runs have done, behind the offset that they committed.

    first, end  they lie between; what lies there and is not pending is done
    pending     number of a block -> those that are not done, as bits; the blocks in rising order
    """

    def __init__(self, first: int, end: int, pending: Mapping[int, int]):
        self._first = first
        self.end = end
        self._pending = pending

    @classmethod
    def parse(cls, committed: int, metadata: str | None) -> "FinishedOffsets":
        """Return those in the metadata of a committed offset.

        None where the metadata is of another form: somebody else set the offset, and wants what lies behind it again.
        """
        if not metadata or not metadata.startswith(_FORM):
            return cls(committed, committed, {})
        try:
            told = base64.b64decode(metadata[len(_FORM) :], validate=True)
            return cls(committed, *_parsed(committed, told))
        except (binascii.Error, IndexError):
            return cls(committed, committed, {})

    def pending_from(self, position: int) -> dict[int, int]:
        """Return those that are not done and lie at this offset or behind it, as bits by the number of their block."""
        if position >= self.end:
            return {}
        first, place = divmod(position, BLOCK_OFFSETS)
        found = {block: bits for block, bits in self._pending.items() if block >= first}
        if first in found:
            found[first] &= -1 << place
            if not found[first]:
                del found[first]
        return found

    def __contains__(self, offset: int) -> bool:
        block, place = divmod(offset, BLOCK_OFFSETS)
        return self._first <= offset < self.end and not self._pending.get(block, 0) >> place & 1


NOTHING_FINISHED = FinishedOffsets(0, 0, {})


class PartitionProgress:
    """The offsets of one partition that were read, and those of them that are done.

    position  the next offset to read
    earlier   what runs before had done behind the offset from which reading begins: told again until it is read
    """

    def __init__(self, position: int, earlier: FinishedOffsets = NOTHING_FINISHED):
        self.position = position
        self._earlier = earlier
        # Of each block with messages that are not done, these, as bits. In the order of the offsets, in which they
        # are read: the first is the lowest.
        self._pending: OrderedDict[int, int] = OrderedDict()

    @property
    def finished(self) -> int:
        """Return the offset before which everything is done."""
        for block, bits in self._pending.items() or self._earlier.pending_from(self.position).items():
            return _lowest(block, bits)
        return self._end

    @property
    def room(self) -> int:
        """Return how many messages more may be read, wherever they lie: what is not done has to fit into metadata.

        What runs before left takes none: it fitted, and until all of it is read nothing else is.
        """
        return MOST_BLOCKS - len(self._pending)

    def read(self, offset: int) -> None:
        """Note a message that is to be dealt with; offsets come in rising order."""
        block, place = divmod(offset, BLOCK_OFFSETS)
        self._pending[block] = self._pending.get(block, 0) | 1 << place
        self.position = offset + 1

    def pass_to(self, position: int) -> None:
        """Note that reading stands here; what lies before and is no message needs nothing."""
        self.position = max(self.position, position)

    def finish(self, offset: int) -> None:
        """Note that a message which was read is done."""
        block, place = divmod(offset, BLOCK_OFFSETS)
        left = self._pending[block] & ~(1 << place)
        if left:
            self._pending[block] = left
        else:
            del self._pending[block]

    def metadata(self) -> str:
        """Return what is done behind `finished`, for `FinishedOffsets.parse`; empty where nothing is."""
        pending = dict(self._pending)
        for block, bits in self._earlier.pending_from(self.position).items():
            pending[block] = pending.get(block, 0) | bits
        first = self.finished
        if sum(bits.bit_count() for bits in pending.values()) == self._end - first:
            return ""
        told = _number(self._end - first)
        block = first // BLOCK_OFFSETS
        for each, bits in pending.items():
            told += _number(each - block) + bits.to_bytes(_BLOCK_BYTES, "little")
            block = each + 1
        return _FORM + base64.b64encode(told).decode()

    @property
    def _end(self) -> int:
        """The offset behind all that this run or one before it has read."""
        return max(self.position, self._earlier.end)


def _parsed(committed: int, told: bytes) -> tuple[int, dict[int, int]]:
    """Return where reading stood, and what was not done. Raises `IndexError` where `told` ends too early."""
    pending: dict[int, int] = {}
    length, at = _read_number(told, 0)
    block = committed // BLOCK_OFFSETS
    while at < len(told):
        passed, at = _read_number(told, at)
        if at + _BLOCK_BYTES > len(told):
            raise IndexError
        block += passed
        pending[block] = int.from_bytes(told[at : at + _BLOCK_BYTES], "little")
        block, at = block + 1, at + _BLOCK_BYTES
    return committed + length, pending


def _number(value: int) -> bytes:
    """Return a number of no fixed length: seven bits a byte, the lowest first, the highest bit where more follow."""
    told = bytearray()
    while value > 0x7F:
        told.append(value & 0x7F | 0x80)
        value >>= 7
    told.append(value)
    return bytes(told)


def _read_number(told: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins there, and where the next thing begins. Raises `IndexError` at the end."""
    value = shift = 0
    while told[at] & 0x80:
        value |= (told[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | told[at] << shift, at + 1


def _lowest(block: int, bits: int) -> int:
    """Return the first offset of those in a block."""
    return block * BLOCK_OFFSETS + (bits & -bits).bit_length() - 1
