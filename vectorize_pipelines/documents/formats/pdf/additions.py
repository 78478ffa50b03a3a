"""What stands on a page beside its text: the values of fields, text boxes. Placed where a person reads them.

Called with the additions that `annotations` finds on a page, and the lines that `layout` has put in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vectorize_pipelines.documents.formats.pdf.layout import Divide, Line

#: A label to the right counts as so many times as far away as one to the left; that of a box to tick does not.
RIGHT_LABEL_FACTOR = 4.0
#: Of the lower of two heights so much is shared by what stands on one line.
SAME_LINE = 0.4


@dataclass(frozen=True, slots=True)
class Addition:
    """A text at a place, in the frame of the page's lines.

    ticked  whether it is a box to tick, whose label stands to the right as often as to the left
    """

    text: str
    left: float
    top: float
    right: float
    bottom: float
    ticked: bool = False

    @property
    def middle(self) -> float:
        """The height at which its middle stands."""
        return (self.top + self.bottom) / 2


def place(lines: Sequence[Line], additions: Sequence[Addition], divide: Divide) -> list[Line]:
    """Return lines in order with each addition behind its label, or as a line of its own where it has none."""
    beside: dict[int, list[Addition]] = {}
    alone: list[Addition] = []
    for addition in additions:
        number = _label(lines, addition)
        if number is None:
            alone.append(addition)
        elif not _is_drawn(lines[number], addition):
            beside.setdefault(number, []).append(addition)
    placed = [
        _with_additions(line, beside[number], divide) if number in beside else line for number, line in enumerate(lines)
    ]
    for row in _rows(alone):
        placed.insert(_place_of(placed, row), row)
    return placed


def _is_drawn(line: Line, addition: Addition) -> bool:
    """Return whether the text also stands on the page at that place: a form that was flattened may keep its fields."""
    width = addition.right - addition.left
    return addition.text in line.text and any(
        min(right, addition.right) - max(left, addition.left) > 0.5 * min(right - left, width)
        for left, right in line.pieces
    )


def _shares_line(line: Line, addition: Addition) -> bool:
    shared = min(line.bottom, addition.bottom) - max(line.top, addition.top)
    return shared >= SAME_LINE * max(min(line.height, addition.bottom - addition.top), 1e-3)


def _label(lines: Sequence[Line], addition: Addition) -> int | None:
    """Return the number of the line that the addition stands in or beside, None where there is none."""
    best: tuple[float, int] | None = None
    for number, line in enumerate(lines):
        if not _shares_line(line, addition):
            continue
        distance = max(addition.left - line.right, 0.0)
        if line.left > addition.left:
            distance = max(line.left - addition.right, 0.0) * (1.0 if addition.ticked else RIGHT_LABEL_FACTOR)
        if best is None or distance < best[0]:
            best = distance, number
    return best[1] if best else None


def _with_additions(line: Line, additions: Sequence[Addition], divide: Divide) -> Line:
    """Return the line with texts put in where they stand in it."""
    parts: list[str] = []
    rest = line
    for addition in sorted(additions, key=lambda addition: addition.left):
        if addition.left >= rest.right or not rest.text:
            if rest.text:
                parts.append(rest.text)
            rest = replace(rest, text="", pieces=())
        elif addition.left > rest.left:
            first, rest = divide(rest, addition.left)
            if first.text:
                parts.append(first.text)
        parts.append(addition.text)
    if rest.text:
        parts.append(rest.text)
    return replace(line, text=" ".join(parts), pieces=((line.left, line.right),))


def _rows(additions: Sequence[Addition]) -> list[Line]:
    """Return additions as lines, those of one height together, from top to bottom."""
    rows: list[list[Addition]] = []
    for addition in sorted(additions, key=lambda addition: addition.middle):
        if rows and addition.top <= rows[-1][0].middle <= addition.bottom:
            rows[-1].append(addition)
        else:
            rows.append([addition])
    return [
        Line(
            " ".join(addition.text for addition in sorted(row, key=lambda addition: addition.left)),
            min(addition.left for addition in row),
            min(addition.top for addition in row),
            max(addition.right for addition in row),
            max(addition.bottom for addition in row),
        )
        for row in rows
    ]


def _place_of(lines: Sequence[Line], row: Line) -> int:
    """Return the number before which a line goes: behind the nearest one above it."""
    above = [
        (row.middle - line.middle, not (line.left <= row.right and row.left <= line.right), -number)
        for number, line in enumerate(lines)
        if line.middle <= row.middle
    ]
    return 1 - min(above)[2] if above else 0
