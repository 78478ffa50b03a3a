"""The work of a run, counted by day: the figures that become metadata of each partition."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Self

from vectorize_pipelines.core.notices import Notice, NoticeKind, has_kind

#: Of each kind a run keeps so many notices; all of them are counted.
NOTICES_KEPT = 10_000


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
    incomplete source documents of which something is not embedded, those found unchanged included
    assumed    source documents of which something was guessed in reading them, those found unchanged included
    truncated  tokens of texts that were cut off, since their model takes no more
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
    incomplete: int = 0
    assumed: int = 0
    truncated: int = 0
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

    def note(self, notices: Sequence[Notice], documents: int = 1) -> None:
        """Count the notices of a document; with `documents` -1, take them back."""
        self.incomplete += documents * has_kind(notices, NoticeKind.OMITTED)
        self.assumed += documents * has_kind(notices, NoticeKind.ASSUMED)

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


@dataclass(frozen=True, slots=True)
class SourceNotice:
    """What is missing of a source document, or was guessed in reading it."""

    source_id: str
    day: str
    notice: Notice


class RunNotices:
    """The notices of a run, in order, what is missing before what was assumed; of each kind at most `NOTICES_KEPT`."""

    def __init__(self) -> None:
        self._kept: dict[NoticeKind, list[SourceNotice]] = {kind: [] for kind in NoticeKind}

    def add(self, source_id: str, day: str, notices: Iterable[Notice]) -> None:
        """Add those of a source document."""
        for notice in notices:
            kept = self._kept[notice.kind]
            if len(kept) < NOTICES_KEPT:
                kept.append(SourceNotice(source_id, day, notice))

    def extend(self, others: "RunNotices") -> None:
        """Add those of a part of the run."""
        for each in others:
            self.add(each.source_id, each.day, (each.notice,))

    def remove(self, source_id: str) -> None:
        """Take those of a source document back."""
        for kind, kept in self._kept.items():
            self._kept[kind] = [each for each in kept if each.source_id != source_id]

    def __iter__(self) -> Iterator[SourceNotice]:
        return (each for kind in NoticeKind for each in self._kept[kind])


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
