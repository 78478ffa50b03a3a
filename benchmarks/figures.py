"""A figure with its bound, and the table of them that every benchmark ends with."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What was measured, and what it was to be; `met` compares the two."""

    name: str
    measured: str
    wanted: str
    met: bool


def report(figures: Sequence[Figure]) -> int:
    """Prints a line for each; gives the exit code: 1 where one is missed."""
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        print(f"{'ok ' if figure.met else 'MISSED'} {figure.name:{width}}  {figure.measured}  (wanted {figure.wanted})")
    return 0 if all(figure.met for figure in figures) else 1
