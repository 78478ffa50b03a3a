"""The lines of a page as PDFium finds them, with their places. Called for every page by `pdfium`."""

import ctypes
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise
from statistics import median
from typing import TYPE_CHECKING

from vectorize_pipelines.documents.formats.pdf.layout import MIN_COLUMN_WIDTH, MIN_GUTTER, Line, in_frame

if TYPE_CHECKING:
    from pypdfium2 import PdfTextPage

#: Points by which the last letter of a plain line may stand above or below the first one, which slanted text does
#: by a share of its width, and a superscript by no more than `_RAISED`.
_LEVEL, _SLOPE, _RAISED = 0.5, 0.2, 7.0
#: Points between the baselines of what stands in one row, and between what is beside each other in it.
_SAME_ROW, _WIDE_GAP = 2.0, 12.0
#: Points; the lines of a column are as wide, and cells of a table, that may be written column by column, are not.
_COLUMN_WIDTH = 90.0
#: Lines may follow each other so often without one standing below the other: a page number below a short line.
_MOST_ASIDE = 2
#: Stretches of a page's lines that are looked at to see whether there are gaps in it.
_SAMPLED = 250
#: Of no more lines than these all are looked at.
_ALL_SAMPLED = 24
_MOST_GAPS = 1
_MIN_WIDE_CHARACTERS = 20
#: Degrees within which text is taken for upright: scans are a little askew.
ASKEW = 3

#: How PDFium marks a hyphen at the end of a line, behind which it leaves the line's end out.
_HYPHENS = ("\x02", "\ufffe", "\uffff")
_MARKS = "".join(_HYPHENS)
#: A line, without white space at both ends.
_LINE = re.compile(rf"[^\s{_MARKS}](?:[^\r\n{_MARKS}]*[^\s{_MARKS}])?")

_Box = tuple[float, float, float, float]
_Baseline = tuple[float, float, float]


class TextLines:
    """The lines of one page. Characters are known by their number in PDFium's list."""

    def __init__(self, text_page: "PdfTextPage") -> None:
        from pypdfium2 import raw

        self._raw = raw
        self._text_page = text_page
        self._page = text_page.raw
        self._characters = self._all_characters()

    def plain(self) -> str | None:
        """Return the text where the lines as the file has them are read from the top, column by column; else None.

        That is so for most pages, where it costs a tenth of what `lines` does. One line at either end may be out of
        order: many programs write the number of a page first.
        """
        spans = [match.span() for match in _LINE.finditer(self._characters)]
        if not spans:
            return ""
        baselines = self._baselines(spans)
        if baselines is None:
            return None
        for moved in (0, 1, -1):
            ends = _separators(baselines[moved:] + baselines[:moved])
            if ends is not None:
                break
        else:
            return None
        if self._has_gaps(spans):
            return None
        texts = [self._text(begin, end) for begin, end in spans[moved:] + spans[:moved]]
        return "".join(chain.from_iterable(zip(texts, ends, strict=True)))

    def _baselines(self, spans: list[tuple[int, int]]) -> list[_Baseline] | None:
        """Return (left, right, height on the page) of lines, None where one of them does not go to the right."""
        x, y = ctypes.c_double(), ctypes.c_double()
        to_x, to_y = ctypes.pointer(x), ctypes.pointer(y)
        origin = self._raw.FPDFText_GetCharOrigin
        found: list[_Baseline] = []
        for begin, end in spans:
            origin(self._page, begin, to_x, to_y)
            left, height = x.value, y.value
            origin(self._page, end - 1, to_x, to_y)
            width = x.value - left
            if width <= 0 and (end - begin > 1 or self._angle(begin) != 0):
                return None
            if abs(y.value - height) > min(max(_LEVEL, _SLOPE * width), _RAISED):
                return None
            found.append((left, x.value, height))
        return found

    def _has_gaps(self, spans: list[tuple[int, int]]) -> bool:
        """Return whether some of the wider lines have gaps, or lead back: by a sample, the whole of which is spread."""
        wide = [span for span in spans if span[1] - span[0] >= _MIN_WIDE_CHARACTERS]
        sample = (*wide[::16], *wide[8::16], *wide[4::8]) if len(wide) > _ALL_SAMPLED else wide
        left, gaps = _SAMPLED, 0
        for begin, end in sample:
            boxes = self._rectangles(begin, end)
            if any(_leads_away(box, following) for box, following in pairwise(boxes)):
                return True
            gaps += _divides(boxes)
            left -= len(boxes)
            if left <= 0:
                break
        return gaps > _MOST_GAPS

    def lines(self) -> list[Line]:
        """Return the lines, in the order of the file; what stands behind each other in one row is one line."""
        found: list[Line] = []
        for match in _LINE.finditer(self._characters):
            for begin, end, direction in self._straight(*match.span()):
                for line in self._forward(begin, end, direction):
                    if found and _continues(found[-1], line):
                        found[-1] = _row(found[-1], line)
                    elif line.text:
                        found.append(line)
        return found

    def divide(self, line: Line, x: float) -> tuple[Line, Line]:
        """Return the parts of a line on both sides of an x of its frame."""
        middle = next(
            (number for number, box in self._boxes(line.begin, line.end, line.direction) if box[0] + box[2] >= 2 * x),
            line.end,
        )
        before = tuple((left, min(right, x)) for left, right in line.pieces if left < x)
        behind = tuple((max(left, x), right) for left, right in line.pieces if right > x)
        return (
            replace(
                line,
                text=self._text(line.begin, middle),
                right=before[-1][1] if before else x,
                pieces=before,
                end=middle,
            ),
            replace(
                line,
                text=self._text(middle, line.end),
                left=behind[0][0] if behind else x,
                pieces=behind,
                begin=middle,
            ),
        )

    def _all_characters(self) -> str:
        """Return a character for each of PDFium's; NUL for what has no meaning, halves of surrogate pairs as such."""
        count = self._text_page.count_chars()
        if not count:
            return ""
        buffer = (ctypes.c_ushort * (count + 1))()
        if self._raw.FPDFText_GetText(self._page, 0, count, buffer) == count + 1:
            text = bytes(memoryview(buffer).cast("B")[: 2 * count]).decode("utf-16-le", "surrogatepass")
            # A pair of surrogates is two of PDFium's characters.
            return text if len(text) == count else "".join(map(chr, buffer[:count]))
        return "".join(chr(self._raw.FPDFText_GetUnicode(self._page, number)) for number in range(count))

    def _text(self, begin: int, end: int) -> str:
        """Return the characters as text, with the hyphen that stands behind them."""
        text = " ".join(self._characters[begin:end].replace("\0", "").split("\r\n")).strip()
        return f"{text}-" if text and self._characters[end : end + 1] in _HYPHENS else text

    def _straight(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (begin, end, direction) of the parts of a line that read in one direction."""
        direction = self._angle(begin)
        if direction == self._angle(end - 1):
            yield begin, end, direction
            return
        for number in range(begin, end):
            turned = direction if self._characters[number].isspace() else self._angle(number)
            if turned != direction:
                yield begin, number, direction
                begin, direction = number, turned
        yield begin, end, direction

    def _angle(self, number: int) -> int:
        angle = self._raw.FPDFText_GetCharAngle(self._page, number)
        if angle <= 0:
            return 0
        degrees = round(math.degrees(angle)) % 360
        right = round(degrees / 90) * 90
        return right % 360 if abs(degrees - right) <= ASKEW else degrees

    def _forward(self, begin: int, end: int, direction: int) -> Iterator[Line]:
        """Yield the parts of a line within which nothing leads back over a gap, as from one column to another."""
        boxes = [in_frame(box, direction) for box in self._rectangles(begin, end)]
        cuts = [
            number for number, (box, following) in enumerate(pairwise(boxes), start=1) if _leads_away(box, following)
        ]
        starts = self._starts(begin, end, direction, boxes) if cuts else None
        if starts is None:
            yield self._line(begin, end, direction, boxes)
            return
        for first, last in pairwise([0, *cuts, len(boxes)]):
            yield self._line(
                begin if first == 0 else starts[first],
                end if last == len(boxes) else starts[last],
                direction,
                boxes[first:last],
            )

    def _starts(self, begin: int, end: int, direction: int, boxes: list[_Box]) -> list[int] | None:
        """Return the first character in each of the boxes, None where one cannot be told."""
        starts: list[int] = []
        for number, box in self._boxes(begin, end, direction):
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            if starts and _holds(boxes[len(starts) - 1], x, y):
                continue
            if len(starts) < len(boxes) and _holds(boxes[len(starts)], x, y):
                starts.append(number)
        return starts if len(starts) == len(boxes) else None

    def _line(self, begin: int, end: int, direction: int, boxes: list[_Box]) -> Line:
        boxes = boxes or [(0.0, 0.0, 0.0, 0.0)]
        top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
        pieces = _pieces(boxes, bottom - top)
        return Line(self._text(begin, end), pieces[0][0], top, pieces[-1][1], bottom, direction, pieces, begin, end)

    def _rectangles(self, begin: int, end: int) -> list[_Box]:
        """Return (left, bottom, right, top) of the stretches that the characters were set in."""
        left, top, right, bottom = (ctypes.c_double() for _ in range(4))
        found = [
            (left.value, bottom.value, right.value, top.value)
            for number in range(self._raw.FPDFText_CountRects(self._page, begin, end - begin))
            if self._raw.FPDFText_GetRect(self._page, number, left, top, right, bottom)
        ]
        if found:
            return found
        box = self._raw.FS_RECTF()  # letters without a height, as recognised text under a scan may have
        return [
            (box.left, box.bottom, box.right, box.top)
            for number in (begin, end - 1)
            if self._raw.FPDFText_GetLooseCharBox(self._page, number, box)
        ]

    def _boxes(self, begin: int, end: int, direction: int) -> Iterator[tuple[int, _Box]]:
        """Yield the characters that are seen, with their boxes in the frame."""
        left, top, right, bottom = (ctypes.c_double() for _ in range(4))
        for number in range(begin, end):
            if not self._characters[number].isspace() and self._raw.FPDFText_GetCharBox(
                self._page, number, left, right, bottom, top
            ):
                yield number, in_frame((left.value, bottom.value, right.value, top.value), direction)


def _separators(lines: list[_Baseline]) -> list[str] | None:
    """Return what stands behind each line, where each is below or behind the one before, or tops the next column."""
    found: list[str] = []
    aside = column = 0
    for number, ((left, right, height), (next_left, next_right, next_height)) in enumerate(pairwise(lines), start=1):
        separator = "\n"
        if next_height < height - _SAME_ROW:
            aside += next_left > right or next_right < left
        elif next_height <= height + _SAME_ROW and next_left > right:
            separator = " "
            aside += next_left > right + _WIDE_GAP
        elif median(before[1] - before[0] for before in lines[column:number]) < _COLUMN_WIDTH or any(
            before[1] >= next_left for before in lines[column:number] if before[2] <= next_height + _SAME_ROW
        ):
            return None
        else:
            column = number
        found.append(separator)
    return [*found, ""] if aside <= _MOST_ASIDE else None


def _divides(boxes: list[_Box]) -> bool:
    """Return whether a line, upright on the page, has a gap with enough on both sides of it for a column."""
    if len(boxes) < 2:
        return False
    height = max(box[3] - box[1] for box in boxes)
    left, right = boxes[0][0] + MIN_COLUMN_WIDTH * height, boxes[-1][2] - MIN_COLUMN_WIDTH * height
    return any(
        following[0] - box[2] > MIN_GUTTER * height and box[2] >= left and following[0] <= right
        for box, following in pairwise(boxes)
    )


def _leads_away(box: _Box, following: _Box) -> bool:
    """Return whether what follows stands before a box and a gap, or goes back to another line."""
    gap = MIN_GUTTER * max(box[3] - box[1], following[3] - following[1])
    other_line = following[1] >= box[3] or following[3] <= box[1]
    return following[2] < box[0] - gap or (other_line and following[0] < box[2] - gap)


def _holds(box: _Box, x: float, y: float) -> bool:
    return box[0] - 0.1 <= x <= box[2] + 0.1 and box[1] - 0.1 <= y <= box[3] + 0.1


def _pieces(boxes: list[_Box], height: float) -> tuple[tuple[float, float], ...]:
    """Return (left, right) of what stands together, from left to right."""
    pieces: list[tuple[float, float]] = []
    for left, _, right, _ in sorted(boxes) if len(boxes) > 1 else boxes:
        if pieces and left - pieces[-1][1] < MIN_GUTTER * height:
            pieces[-1] = pieces[-1][0], max(pieces[-1][1], right)
        else:
            pieces.append((left, right))
    return tuple(pieces)


def _continues(line: Line, following: Line) -> bool:
    """Return whether a line stands behind another one in one row of the page: PDFium divides wide rows."""
    shared = min(line.bottom, following.bottom) - max(line.top, following.top)
    lower = min(line.height, following.height)
    return (
        line.direction == following.direction
        and not line.is_vertical
        and shared > 0.6 * lower
        and lower > 0.4 * max(line.height, following.height)
        and following.left >= line.right
    )


def _row(line: Line, following: Line) -> Line:
    return replace(
        line,
        text=f"{line.text} {following.text}",
        top=min(line.top, following.top),
        right=following.right,
        bottom=max(line.bottom, following.bottom),
        pieces=(*line.pieces, *following.pieces),
        end=following.end,
    )
