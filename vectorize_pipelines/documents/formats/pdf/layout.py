"""The order in which a person reads what stands on a page. Called with the lines of both PDFium and OCR.

The lines come in the order of the file, which is right for most pages. They are put into another one where the page
shows that it is wrong: text in columns that the file holds row by row, lines that it holds out of order, and text in
several directions.
"""

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median

#: A column has so many lines at least, each so wide as a multiple of its height: cells of tables are narrower.
MIN_COLUMN_LINES = 4
MIN_COLUMN_WIDTH = 8.0
#: Of a column's width so much is filled, on average: that of a table is not.
MIN_FILLED = 0.6
#: Beside the lines in columns there may be so many, by their number, that go across.
MAX_ACROSS = 0.25
#: A gap between words, as a multiple of a line's height, that may divide columns.
MIN_GUTTER = 0.9
#: On a page of more pieces than these, such as a map, lines stay in the order of the file.
MAX_UNITS = 300
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
#: A table has so many rules, or cells, at least; and so many lines in a cell, on average, to be known by them.
_RULES, _CELLS, _LINES_BY_CELL = 3, 5, 1.5
_DEEPEST = 6
_EDGES_TRIED = 24
_SAMPLES = 9


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text, in a frame of its own in which it reads from left to right, and y grows downwards.

    direction  degrees by which the text is turned clockwise on the page before it is turned by `/Rotate`
    pieces     (left, right) of its stretches without a wide gap, from left to right
    begin, end the place of its characters, for whoever divides it
    """

    text: str
    left: float
    top: float
    right: float
    bottom: float
    direction: int = 0
    pieces: tuple[tuple[float, float], ...] = ()
    begin: int = 0
    end: int = 0

    @property
    def height(self) -> float:
        """Its height."""
        return self.bottom - self.top

    @property
    def middle(self) -> float:
        """The height at which its middle stands."""
        return (self.top + self.bottom) / 2

    @property
    def is_vertical(self) -> bool:
        """Whether it is written from top to bottom."""
        return len(self.text) > 2 and self.height > 2 * (self.right - self.left)


#: Divides a line at an x of its frame; called for places between two of its pieces only.
Divide = Callable[[Line, float], tuple[Line, Line]]
#: Returns (left, right, y) of the rules that are drawn across a page, in the frame of a direction.
Rules = Callable[[int], Sequence[tuple[float, float, float]]]


def no_rules(direction: int) -> Sequence[tuple[float, float, float]]:
    """Return none, for pages of which they are not known."""
    del direction
    return ()


@dataclass(slots=True)
class _Region:
    """The two columns beside each other that a gutter at `x` divides lines into, and what goes across them."""

    left: list[Line] = field(default_factory=list)
    right: list[Line] = field(default_factory=list)
    across: list[Line] = field(default_factory=list)


def in_frame(box: tuple[float, float, float, float], direction: int) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of a box (left, bottom, right, top of the page, y upwards) in a frame."""
    if direction == 0:
        return box[0], -box[3], box[2], -box[1]
    angle = math.radians(direction)
    cosine, sine = round(math.cos(angle), 9), round(math.sin(angle), 9)
    corners = [(x, y) for x in (box[0], box[2]) for y in (box[1], box[3])]
    across = [x * cosine - y * sine for x, y in corners]
    down = [-(x * sine + y * cosine) for x, y in corners]
    return min(across), min(down), max(across), max(down)


def main_direction(lines: Sequence[Line]) -> int:
    """Return the direction in which most of the text reads; 0 for no lines."""
    sizes: Counter[int] = Counter()
    for line in lines:
        sizes[line.direction] += len(line.text)
    return sizes.most_common(1)[0][0] if sizes else 0


def reading_order(lines: Sequence[Line], divide: Divide, rules: Rules = no_rules) -> list[Line]:
    """Return the lines as a person reads them: what reads as most of the page does, then what stands otherwise."""
    directions = dict.fromkeys(line.direction for line in lines)
    if len(directions) > 1:
        main = main_direction(lines)
        directions = dict.fromkeys([main, *directions])
    return [
        line
        for direction in directions
        for line in _one_direction([line for line in lines if line.direction == direction], divide, rules)
    ]


def _one_direction(lines: list[Line], divide: Divide, rules: Rules) -> list[Line]:
    letters = "".join(line.text for line in lines)
    if 2 * len(_RIGHT_TO_LEFT.findall(letters)) > len(letters):
        return lines
    if 2 * sum(line.is_vertical for line in lines) > len(lines):
        return _from_right_to_left(lines)
    return _in_columns(lines, divide, rules, depth=0)


def _from_right_to_left(lines: Sequence[Line]) -> list[Line]:
    """Return lines that are written from top to bottom, as in Japanese: tier by tier, each from the right."""
    in_order = sorted(lines, key=lambda line: line.top)
    tiers = _overlapping(in_order, lambda line: line.middle, lambda line: line.bottom)
    return [line for tier in tiers for line in sorted(tier, key=lambda line: -line.right)]


def _in_columns(lines: list[Line], divide: Divide, rules: Rules, depth: int) -> list[Line]:
    """Return lines column by column, what goes across in its place; as `_in_rows` where there are no columns."""
    x = _gutter(lines) if depth < _DEEPEST else None
    if x is None or _is_written_by_cells(lines, x) or _is_ruled(lines, x, rules):
        return _in_rows(lines, rules)
    region = _divided(lines, x, divide)
    _set_margins_across(region)
    rows = sorted(region.across, key=lambda line: line.middle)
    heights = [line.middle for line in rows]
    ordered: list[Line] = []
    left, right = _by_band(region.left, heights), _by_band(region.right, heights)
    for band in range(len(rows) + 1):
        for column in (left, right):
            if band in column:
                ordered += _in_columns(column[band], divide, rules, depth + 1)
        if band < len(rows):
            ordered.append(rows[band])
    return ordered


def _by_band(lines: Sequence[Line], heights: Sequence[float]) -> dict[int, list[Line]]:
    """Return lines by the number of rows that go across above them."""
    bands: dict[int, list[Line]] = {}
    for line in lines:
        bands.setdefault(bisect_right(heights, line.middle), []).append(line)
    return bands


def _pieces(lines: Sequence[Line]) -> list[Line]:
    """Return the stretches of the lines as lines without text."""
    return [
        replace(line, text="", left=left, right=right)
        for line in lines
        for left, right in (line.pieces or ((line.left, line.right),))
    ]


def _gutter(lines: Sequence[Line]) -> float | None:
    """Return the left edge of a column beside another one, None where there is none."""
    if len(lines) < MIN_COLUMN_LINES:
        return None
    pieces = _pieces(lines)
    if len(pieces) < 2 * MIN_COLUMN_LINES:
        return None
    height = max(median(line.height for line in lines), 1e-3)
    edges = Counter(round(piece.left / height * 4) for piece in pieces)
    candidates = [edge for edge, count in edges.most_common(_EDGES_TRIED) if count >= MIN_COLUMN_LINES]
    best: tuple[int, float] | None = None
    for edge in candidates:
        x = min(piece.left for piece in pieces if round(piece.left / height * 4) == edge)
        size = _column_lines(pieces, x, height)
        if size and (best is None or (size, -x) > (best[0], -best[1])):
            best = size, x
    return best[1] if best else None


def _column_lines(pieces: Sequence[Line], x: float, height: float) -> int:
    """Return how many lines the smaller of the columns left and right of `x` has; 0 where they are none."""
    slack = 0.2 * height
    right = [piece for piece in pieces if piece.left >= x - slack]
    left = [piece for piece in pieces if piece.right <= x - slack]
    if min(len(left), len(right)) < MIN_COLUMN_LINES:
        return 0
    top = max(min(piece.top for piece in left), min(piece.top for piece in right))
    bottom = min(max(piece.bottom for piece in left), max(piece.bottom for piece in right))
    left = [piece for piece in left if top <= piece.middle <= bottom]
    right = [piece for piece in right if top <= piece.middle <= bottom]
    size = min(len(left), len(right))
    across = sum(
        piece.left < x - slack and piece.right > x - slack and top <= piece.middle <= bottom for piece in pieces
    )
    if size < MIN_COLUMN_LINES or across > MAX_ACROSS * (len(left) + len(right)):
        return 0
    return size if _is_prose(left, height) and _is_prose(right, height) else 0


def _is_prose(pieces: Sequence[Line], height: float) -> bool:
    """Return whether lines fill the width that they stand in, as those of a paragraph do."""
    if median(piece.right - piece.left for piece in pieces) < MIN_COLUMN_WIDTH * height:
        return False
    left, right = min(piece.left for piece in pieces), max(piece.right for piece in pieces)
    places = [left + (right - left) * (number + 0.5) / _SAMPLES for number in range(_SAMPLES)]
    counts = [sum(piece.left <= place <= piece.right for piece in pieces) for place in places]
    return sum(counts) >= MIN_FILLED * _SAMPLES * max(*counts, 1)


def _is_written_by_cells(lines: Sequence[Line], x: float) -> bool:
    """Return whether the file goes from one side of `x` to the other and back, some lines each time, and downwards.

    So it writes the cells of a table, where columns come one after the other, or line by line.
    """
    placed = [line for line in lines if line.right <= x or line.left >= x - 0.2 * line.height]
    order = [line.right <= x for line in placed]
    for side in (True, False):
        column = [line for line, left in zip(placed, order, strict=True) if left is side]
        if any(line.middle > following.middle for line, following in pairwise(column)):
            return False
    runs = 1 + sum(side != following for side, following in pairwise(order))
    return runs >= _CELLS and len(order) >= _LINES_BY_CELL * runs


def _is_ruled(lines: Sequence[Line], x: float, rules: Rules) -> bool:
    """Return whether rules go across `x` between the lines, as in a table."""
    top, bottom = min(line.top for line in lines), max(line.bottom for line in lines)
    across = {round(y) for left, right, y in rules(lines[0].direction) if left < x < right and top <= y <= bottom}
    return len(across) >= _RULES


def _divided(lines: Sequence[Line], x: float, divide: Divide) -> _Region:
    region = _Region()
    for line in lines:
        slack = 0.2 * line.height
        pieces = line.pieces or ((line.left, line.right),)
        before = [piece for piece in pieces if piece[1] <= x - slack]
        behind = [piece for piece in pieces if piece[0] >= x - slack]
        if len(before) + len(behind) < len(pieces):
            region.across.append(line)
        elif not behind:
            region.left.append(line)
        elif not before:
            region.right.append(line)
        else:
            first, second = divide(line, (before[-1][1] + behind[0][0]) / 2)
            region.left += [first] if first.text else []
            region.right += [second] if second.text else []
    return region


def _set_margins_across(region: _Region) -> None:
    """Count the page's first and last row as going across where they stand apart: a header, a footer."""
    for sign in (1, -1):
        ordered = sorted([*region.left, *region.right, *region.across], key=lambda line: sign * line.middle)
        row = [line for line in ordered if abs(line.middle - ordered[0].middle) <= 0.5 * ordered[0].height]
        rest = ordered[len(row) :]
        edge = max(sign * line.bottom if sign > 0 else sign * line.top for line in row)
        gap = min((sign * line.top if sign > 0 else sign * line.bottom for line in rest), default=edge) - edge
        if gap >= 1.2 * ordered[0].height:
            marginal = set(map(id, row))
            region.across += [line for line in (*region.left, *region.right) if id(line) in marginal]
            region.left = [line for line in region.left if id(line) not in marginal]
            region.right = [line for line in region.right if id(line) not in marginal]


def _in_rows(lines: list[Line], rules: Rules) -> list[Line]:
    """Return lines so that each comes after what stands above it, else as the file has them.

    Those in columns that are not known as such, or in blocks beside each other, stay in the order of the file so.
    """
    if all(line.middle <= following.middle for line, following in pairwise(lines)):
        return lines
    places = {id(line): place for place, line in enumerate(lines)}
    units: list[list[Line]] = []
    for cluster in _clusters(_runs(lines)):
        together = [line for run in cluster for line in run]
        if len(cluster) == len(together):  # one row
            units.append(sorted(together, key=lambda line: line.left))
        elif not _collide(together):
            units.append(sorted(together, key=lambda line: line.middle))
        elif rows := _rows_of_table(together, rules):
            units.append(rows)
        else:
            units += cluster
    units.sort(key=lambda unit: min(places[id(line)] for line in unit))
    return [line for unit in _from_the_top(units) for line in unit]


def _rows_of_table(lines: Sequence[Line], rules: Rules) -> list[Line]:
    """Return lines row by row, each cell by cell, where all of them stand between rules; else nothing."""
    left, right = min(line.left for line in lines), max(line.right for line in lines)
    heights = sorted({y for begin, end, y in rules(lines[0].direction) if begin <= left and right <= end})
    outside = not heights or any(not heights[0] <= line.middle <= heights[-1] for line in lines)
    if outside or len(heights) < _RULES:
        return []
    rows = _by_band(lines, heights)
    return [line for band in sorted(rows) for cell in _cells(rows[band]) for line in cell]


def _cells(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the lines of one row by what stands below each other, from left to right, each from the top."""
    in_order = sorted(lines, key=lambda line: line.left)
    cells = _overlapping(in_order, lambda line: line.left, lambda line: line.right)
    return [sorted(cell, key=lambda line: line.middle) for cell in cells]


def _runs(lines: Sequence[Line]) -> list[list[Line]]:
    """Return lines by what goes on downwards without a wide gap, in the order of the file."""
    runs: list[list[Line]] = []
    for line in lines:
        last = runs[-1][-1] if runs else None
        if last is not None and -1.0 * last.height <= line.top - last.bottom <= 2.5 * last.height:
            runs[-1].append(line)
        else:
            runs.append([line])
    return runs


def _from_the_top(units: Sequence[list[Line]]) -> list[list[Line]]:
    """Return units of lines so that each comes after those that stand above it, else in the order given."""
    if len(units) > MAX_UNITS:
        return list(units)
    boxes = [_Box.around(unit) for unit in units]
    above = [{first for first, box in enumerate(boxes) if box.is_above(boxes[unit])} for unit in range(len(units))]
    waiting = list(range(len(units)))
    ordered: list[list[Line]] = []
    while waiting:
        unit = next((unit for unit in waiting if not above[unit]), waiting[0])
        waiting.remove(unit)
        ordered.append(units[unit])
        for others in above:
            others.discard(unit)
    return ordered


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, lines: Sequence[Line]) -> "_Box":
        """Return the box around the middles of lines."""
        return cls(
            min(line.left for line in lines),
            min(line.middle for line in lines),
            max(line.right for line in lines),
            max(line.middle for line in lines),
        )

    def is_above(self, other: "_Box") -> bool:
        """Return whether this is all above the other and shares some of its width."""
        return self.bottom < other.top and self.left < other.right and other.left < self.right


def _clusters(runs: Sequence[list[Line]]) -> list[list[list[Line]]]:
    """Return runs of lines from top to bottom, together those that share a height, in the order of the file."""
    bounds = [
        (min(line.middle - 0.2 * line.height for line in run), max(line.middle + 0.2 * line.height for line in run))
        for run in runs
    ]
    order = sorted(range(len(runs)), key=lambda number: bounds[number])
    clusters: list[list[int]] = []
    bottom = -math.inf
    for number in order:
        if clusters and bounds[number][0] <= bottom:
            clusters[-1].append(number)
        else:
            clusters.append([number])
        bottom = max(bottom, bounds[number][1])
    return [[runs[number] for number in sorted(cluster)] for cluster in clusters]


def _collide(lines: Sequence[Line]) -> bool:
    """Return whether some of the lines stand beside each other."""
    ordered = sorted(lines, key=lambda line: line.middle)
    return any(
        line.bottom - following.top > 0.2 * min(line.height, following.height) for line, following in pairwise(ordered)
    )


def _overlapping(
    lines: Sequence[Line], begin: Callable[[Line], float], end: Callable[[Line], float]
) -> list[list[Line]]:
    """Return lines, given in order, in groups: each line begins before those of its group have all ended."""
    groups: list[list[Line]] = []
    reached = -math.inf
    for line in lines:
        if groups and begin(line) < reached:
            groups[-1].append(line)
        else:
            groups.append([line])
        reached = max(reached, end(line))
    return groups
