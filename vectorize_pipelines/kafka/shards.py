"""Shards: the parts of a topic that runs beside each other own."""

import re
from dataclasses import dataclass
from typing import Self

from vectorize_pipelines.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a topic that one run owns: every partition whose number leaves `index` when divided by `count`."""

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
        """Return so many shards, which own every partition, each its own."""
        return [cls(index, count) for index in range(count)]

    def owns(self, partition: int) -> bool:
        """Return whether a partition is this shard's."""
        return partition % self.count == self.index

    def overlaps(self, other: "Shard") -> bool:
        """Return whether some partition is, or may be, both this shard's and the other's."""
        return self.count != other.count or self.index == other.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


#: The shard of a run that owns everything.
WHOLE = Shard()
