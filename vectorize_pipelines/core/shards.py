"""Shards: the parts of a topic, or of a folder or bucket, that runs beside each other own."""

import hashlib
import re
from dataclasses import dataclass
from typing import Self

from vectorize_pipelines.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Shard:
    """The part that one run owns, of `count` parts of which none overlap and which together are everything.

    Of a topic: every partition whose number leaves `index` when divided by `count`. Of a folder or bucket: every source
    whose `slot` does.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `0/4`, the first of four, and the like. Raises `SettingsError`."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)
        if found is None or int(found[1]) >= int(found[2]):
            raise SettingsError(f"the shard is {text!r}; give its number and the count of shards, as in 0/4")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def layout(cls, count: int) -> list[Self]:
        """Return so many shards, which own every partition and every source, each its own."""
        return [cls(index, count) for index in range(count)]

    @property
    def is_whole(self) -> bool:
        """Whether this is the only shard."""
        return self.count == 1

    def owns(self, partition: int) -> bool:
        """Return whether a partition is this shard's."""
        return partition % self.count == self.index

    def owns_source(self, source_id: str) -> bool:
        """Return whether a file, object or other source is this shard's, by its id alone."""
        return self.is_whole or slot(source_id) % self.count == self.index

    def overlaps(self, other: "Shard") -> bool:
        """Return whether something is, or may be, both this shard's and the other's."""
        return self.count != other.count or self.index == other.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


#: The shard of a run that owns everything.
WHOLE = Shard()


def slot(source_id: str) -> int:
    """Return the number by which a source belongs to a shard: `blake2b` of its id's UTF-8, eight bytes, big-endian.

    It must never change: runs of two versions beside each other would else own the same source, or neither of them.
    """
    digest = hashlib.blake2b(source_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
