"""Looks again at what earlier runs of a check found, so that the check fails until that is mended.

Called by every asset check that looks at parts of collections: the run that it belongs to may have written elsewhere.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

import dagster as dg

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.findings import Findings

Report = TypeVar("Report")


@dataclass(frozen=True, slots=True)
class Look(Generic[Report]):
    """The outcome of one look at a part of a collection.

    failing   the subjects (sources, or rows) that are not as they should be
    unlooked  those that could not be looked at this time: they stay as they were found
    """

    collection: str
    report: Report
    failing: Collection[str]
    unlooked: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Examined(Generic[Report]):
    """The findings of one check.

    own      of what its run is about
    earlier  of what earlier runs of it had found
    standing collection -> what these had found and is not in order yet, as far as anybody could look
    mended   how many subjects these had found that are in order by now, or gone
    """

    own: Sequence[Look[Report]]
    earlier: Sequence[Look[Report]]
    standing: Mapping[str, Collection[str]]
    mended: int

    @property
    def reports(self) -> list[Report]:
        """Every report."""
        return [each.report for each in (*self.own, *self.earlier)]

    @property
    def passed(self) -> bool:
        """Return whether nothing fails, in whatever run it was found."""
        return not self.standing and not any(each.failing for each in self.own)

    @property
    def severity(self) -> dg.AssetCheckSeverity:
        """A warning, which neither fails the run nor blocks what is downstream, where the run itself is in order."""
        own = any(each.failing for each in self.own)
        return dg.AssetCheckSeverity.ERROR if own else dg.AssetCheckSeverity.WARN

    def description(self, own: str | None, remedy: str) -> str | None:
        """Return the check's description: `own` of the run itself, and what stands of earlier runs, with the remedy."""
        said = [own] if own else []
        if self.standing:
            named = ", ".join(f"{len(subjects)} in {name}" for name, subjects in self.standing.items())
            said.append(f"Found by an earlier run and not mended yet: {named}. {remedy}")
        if self.mended:
            said.append(f"{self.mended} that an earlier run found are in order now, or gone.")
        return " ".join(said) or None


def examine(
    settings: Settings,
    owner: str,
    check: str,
    look_at_own: Callable[[], Sequence[Look[Report]]],
    look_again: Callable[[Mapping[str, Collection[str]]], Sequence[Look[Report]]],
) -> Examined[Report]:
    """Look at what the run is about and at what was found before, and remember what fails now.

    `look_again` is given collection -> subjects; see `findings.WHOLE`. It leaves out collections that are gone. Raises
    `LedgerError`, and what the two raise, after which everything stays as it was remembered.
    """
    with closing(Findings.open(settings)) as findings:
        before = findings.of_check(owner, check)
        own = look_at_own()
        earlier = look_again(before) if before else []
        found = _found([*own, *earlier], before)
        findings.settle(owner, check, before, found)
    mended = sum(len(subjects - found.get(name, set())) for name, subjects in before.items())
    return Examined(own, earlier, _found(earlier, before), mended)


def _found(looks: Sequence[Look[Report]], before: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    """Collection -> what fails, and what was found before and could not be looked at."""
    found: dict[str, set[str]] = {}
    for each in looks:
        unlooked = set(each.unlooked).intersection(before.get(each.collection, ()))
        if each.failing or unlooked:
            found.setdefault(each.collection, set()).update(each.failing, unlooked)
    return found
