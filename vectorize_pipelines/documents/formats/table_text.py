"""Rows of tables inside documents as lines of text. Used by the formats of office documents and HTML."""

from collections.abc import Sequence

from vectorize_pipelines.documents.formats.values import one_line

CELL_SEPARATOR = " | "
#: Cells that one may span, and empty ones that a row may repeat: no table for readers is wider.
MAX_COLUMNS = 256


def row_line(cells: Sequence[str]) -> str:
    """Return a row as one line, cells divided by ` | `; an empty cell keeps its place. Empty where all of them are."""
    line = one_line(CELL_SEPARATOR.join(cells))
    return line if line.strip(CELL_SEPARATOR) else ""
