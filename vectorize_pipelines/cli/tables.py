"""Tables on stdout: on a terminal with headings and within its width, elsewhere as plain lines for other programs."""

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

import click

#: A text, or a text and its style, as `rich` names it.
Cell: TypeAlias = str | tuple[str, str]

_GAP = 2
#: Columns are padded to so many cells at most where no person reads: one long cell does not lengthen every line.
_WIDEST_PADDING = 40


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Cell]], *, right: Collection[str] = ()) -> None:
    """Print rows in columns; what is no terminal gets neither headings nor colours, and no line is wrapped.

    right  the headings of columns that are flush right
    """
    if sys.stdout.isatty():
        _print_for_people(headings, rows, right)
        return
    from rich.cells import cell_len

    texts = [[cell if isinstance(cell, str) else cell[0] for cell in row] for row in rows]
    widths = [min(_WIDEST_PADDING, max(map(cell_len, column))) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = []
        for heading, width, text in zip(headings, widths, row, strict=True):
            space = " " * (width - cell_len(text))
            cells.append(f"{space}{text}" if heading in right else f"{text}{space}")
        click.echo((" " * _GAP).join(cells).rstrip())


def _print_for_people(headings: Sequence[str], rows: Iterable[Sequence[Cell]], right: Collection[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else Text(*cell) for cell in row))
    Console().print(table)
