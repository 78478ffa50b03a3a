"""The work of a run, counted by day: the figures that become metadata of each partition."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Self


@dataclass(slots=True)
class DayTotals:
    """Counts of one day.

    documents  source documents dealt with, those found unchanged included
    chunks     their items
    encoded    items that went through the encoder
    cache_hits items whose vector the embedding cache had
    deduplicated  items of the same content as another one of the run, whose vector they took
    deleted    rows deleted
    failed     source documents that could not be embedded
    tokens     of what was encoded, as the provider counted them where a remote model did it
    cost       of these, in the currency of the price table; 0 for a model of this machine, and one without a price
    *_seconds  time in each stage; the stages overlap, so they may add up to more than the run took
    errors     source documents by class of error
    """

    documents: int = 0
    chunks: int = 0
    encoded: int = 0
    cache_hits: int = 0
    deduplicated: int = 0
    deleted: int = 0
    failed: int = 0
    tokens: int = 0
    cost: float = 0.0
    read_seconds: float = 0.0
    encode_seconds: float = 0.0
    cache_seconds: float = 0.0
    write_seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def skipped(self) -> int:
        """Items that did not have to be encoded: unchanged, or with a vector that was there already."""
        return max(0, self.chunks - self.encoded)

    def add(self, other: Self) -> None:
        """Add another's counts to this one's."""
        for each in fields(self):
            value = getattr(other, each.name)
            if isinstance(value, Counter):
                self.errors.update(value)
            else:
                setattr(self, each.name, getattr(self, each.name) + value)


@dataclass(frozen=True, slots=True)
class Failure:
    """A source document that could not be embedded, and why."""

    source_id: str
    day: str
    error_class: str
    message: str


class Totals(dict[str, DayTotals]):
    """Day -> its totals; a day is there once something of it was dealt with."""

    def of(self, day: str) -> DayTotals:
        """The totals of a day, to be added to."""
        return self.setdefault(day, DayTotals())

    def merge(self, other: Mapping[str, DayTotals]) -> None:
        """Add another's totals, day by day."""
        for day, totals in other.items():
            self.of(day).add(totals)

    def spread(self, stage: str, seconds: float, weights: Mapping[str, int]) -> None:
        """Add a stage's time to days, in proportion to their weights; to all days here alike where there are none."""
        weights = weights or dict.fromkeys(self, 1)
        name = f"{stage}_seconds"
        for day, weight in weights.items():
            totals = self.of(day)
            setattr(totals, name, getattr(totals, name) + seconds * weight / sum(weights.values()))

    def work(self) -> "Totals":
        """Return what was spent and done, without what there is: a further attempt does not count that again."""
        done = Totals()
        for day, totals in self.items():
            done[day] = DayTotals(
                encoded=totals.encoded,
                deduplicated=totals.deduplicated,
                cache_hits=totals.cache_hits,
                deleted=totals.deleted,
                tokens=totals.tokens,
                cost=totals.cost,
                read_seconds=totals.read_seconds,
                encode_seconds=totals.encode_seconds,
                cache_seconds=totals.cache_seconds,
                write_seconds=totals.write_seconds,
            )
        return done

    def sum(self, days: Iterable[str] | None = None) -> DayTotals:
        """Return the totals of all days together, or of those named."""
        total = DayTotals()
        for day in self if days is None else days:
            if day in self:
                total.add(self[day])
        return total
