"""PDFs through PDFium: text with its places, fields, bookmarks, labels of pages, pictures of pages."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from vectorize_pipelines.documents.errors import EncryptedDocumentError
from vectorize_pipelines.documents.formats.pdf import annotations
from vectorize_pipelines.documents.formats.pdf.additions import place
from vectorize_pipelines.documents.formats.pdf.bookmarks import MAX_BOOKMARKS, Bookmark
from vectorize_pipelines.documents.formats.pdf.layout import MIN_GUTTER, Line, in_frame, main_direction, reading_order
from vectorize_pipelines.documents.formats.pdf.pages import PageText, utf16_text
from vectorize_pipelines.documents.formats.values import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pypdfium2 import PdfPage, PdfTextPage

#: Points; beyond the edges of any page.
EVERYWHERE = 1e6
#: A page with fewer drawn lines and shapes than this shows nothing that could be text.
MIN_DRAWN = 20
_OBJECTS_SEEN = 5_000
#: Degrees within which text is taken for upright: scans are a little askew.
_ASKEW = 3

#: A line, and how PDFium marks a hyphen at its end (it leaves the line's end out behind one).
_LINE = re.compile("([^\r\n\x02\ufffe\uffff]+)([\x02\ufffe\uffff]?)")


def encrypted() -> EncryptedDocumentError:
    """Return the error for a document that opens with a password only."""
    return EncryptedDocumentError("is encrypted; remove the password (`qpdf --decrypt`), or exclude the file")


class PdfiumFile:
    """An open document. Every method raises what PDFium's binding raises over damaged bytes."""

    def __init__(self, content: bytes) -> None:
        """Raises `EncryptedDocumentError`; an empty user password is tried."""
        import pypdfium2
        from pypdfium2 import raw

        try:
            self._document = pypdfium2.PdfDocument(content)
        except pypdfium2.PdfiumError as error:
            if error.err_code == raw.FPDF_ERR_PASSWORD:
                raise encrypted() from error
            raise
        form = self._document.get_formtype()
        #: Whether what the pages show is made by a program in the file, of which nothing here knows.
        self.is_dynamic_form = form == raw.FORMTYPE_XFA_FULL
        if form != raw.FORMTYPE_NONE:
            self._document.init_forms()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._document.close()

    def __len__(self) -> int:
        return len(self._document)

    @property
    def information(self) -> dict[str, str]:
        """What the document says of itself."""
        information: dict[str, str] = self._document.get_metadata_dict()
        return information

    def label(self, number: int) -> str:
        """Return what a page, counted from 0, calls itself; empty where it does not."""
        from pypdfium2 import raw

        return one_line(utf16_text(partial(raw.FPDF_GetPageLabel, self._document, number)))

    def bookmarks(self) -> list[Bookmark]:
        """Return the outline's entries that point at a page."""
        from pypdfium2 import raw

        found: list[Bookmark] = []
        for entry in islice(self._document.get_toc(), MAX_BOOKMARKS):
            destination = entry.get_dest()
            page = None if destination is None else destination.get_index()
            title = one_line(utf16_text(partial(raw.FPDFBookmark_GetTitle, entry)))
            if page is not None and title:
                found.append(Bookmark(title, entry.level + 1, page))
        return found

    def page(self, number: int, *, with_comments: bool) -> PageText:
        """Return the page, counted from 0."""
        # Closed page by page: a document of thousands would otherwise keep all of them decoded.
        with closing(self._document[number]) as page, closing(page.get_textpage()) as text_page:
            characters = _characters(text_page)
            lines = _lines(text_page, characters)
            ordered = reading_order(lines, _Divider(text_page, characters))
            if added := annotations.additions(page, _direction(page, lines)):
                ordered = place(ordered, added, _Divider(text_page, characters))
            parts = [line.text for line in ordered]
            if with_comments:
                parts += annotations.comments(page)
            text = "\n".join(parts)
            shows, has_letters = (False, True) if text else _shown(page)
            return PageText(text, shows, has_letters)

    def picture(self, number: int, longest: int, per_inch: int) -> "NDArray[Any]":
        """Return a page, counted from 0, as an array of grey (height, width, 1), no side longer than `longest`."""
        with closing(self._document[number]) as page:
            scale = min(per_inch / 72, longest / max(*page.get_size(), 1.0))
            with closing(page.render(scale=scale, grayscale=True)) as bitmap:
                picture: NDArray[Any] = bitmap.to_numpy().copy()
                return picture


def _direction(page: "PdfPage", lines: list[Line]) -> int:
    """Return the direction of the page's frame: that of its text, or the one that is upright as it is shown."""
    return main_direction(lines) if lines else (360 - page.get_rotation()) % 360


def _characters(text_page: "PdfTextPage") -> str:
    """Return a character for each of PDFium's, so that their numbers are the same; NUL for what has no meaning."""
    from pypdfium2 import raw

    count = text_page.count_chars()
    if not count:
        return ""
    buffer = (ctypes.c_ushort * (count + 1))()
    written = raw.FPDFText_GetText(text_page, 0, count, buffer)
    # That function knows only Unicode's first plane, and leaves out what has no meaning.
    bounded = text_page.get_text_bounded(-EVERYWHERE, -EVERYWHERE, EVERYWHERE, EVERYWHERE)
    if written == count + 1:
        text = bytes(memoryview(buffer).cast("B")[: 2 * count]).decode("utf-16-le", "surrogatepass")
        if len(text) < count:  # it holds pairs of surrogates, each a character of PDFium's
            return "".join(map(chr, buffer[:count]))
        if not bounded or max(bounded) <= "\uffff":
            return text
    return "".join(chr(raw.FPDFText_GetUnicode(text_page, number)) for number in range(count))


def _lines(text_page: "PdfTextPage", characters: str) -> list[Line]:
    found: list[Line] = []
    for match in _LINE.finditer(characters):
        for begin, end, direction in _straight(text_page, characters, *match.span(1)):
            text = _text(characters, begin, end)
            if not text:
                continue
            line = _line(text_page, text, begin, end, direction)
            if found and _continues(found[-1], line):
                found[-1] = _row(found[-1], line)
            else:
                found.append(line)
    return found


def _continues(line: Line, following: Line) -> bool:
    """Return whether a line stands behind another one on the same line of the page: PDFium divides wide rows."""
    shared = min(line.bottom, following.bottom) - max(line.top, following.top)
    lower = min(line.height, following.height)
    return (
        line.direction == following.direction
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


def _text(characters: str, begin: int, end: int) -> str:
    """Return the characters as text, with the hyphen that stands behind them."""
    text = " ".join(characters[begin:end].replace("\0", "").splitlines()).strip()
    return f"{text}-" if text and characters[end : end + 1] in ("\x02", "\ufffe", "\uffff") else text


def _straight(text_page: "PdfTextPage", characters: str, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, end, direction) of the parts of a line that read in one direction."""
    shown = characters[begin:end]
    first = begin + len(shown) - len(shown.lstrip())
    last = begin + len(shown.rstrip()) - 1
    if first > last:
        return
    direction = _angle(text_page, first)
    if direction == _angle(text_page, last):
        yield begin, end, direction
        return
    start = begin
    for number in range(begin, end):
        turned = direction if characters[number].isspace() else _angle(text_page, number)
        if turned != direction:
            yield start, number, direction
            start, direction = number, turned
    yield start, end, direction


def _angle(text_page: "PdfTextPage", number: int) -> int:
    from pypdfium2 import raw

    angle = raw.FPDFText_GetCharAngle(text_page, number)
    if angle < 0:
        return 0
    degrees = round(angle * 57.29577951308232) % 360
    right = round(degrees / 90) * 90
    return right % 360 if abs(degrees - right) <= _ASKEW else degrees


def _line(text_page: "PdfTextPage", text: str, begin: int, end: int, direction: int) -> Line:
    boxes = [in_frame(box, direction) for box in _rectangles(text_page, begin, end)] or [(0.0, 0.0, 0.0, 0.0)]
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[2] for box in boxes), max(box[3] for box in boxes)
    return Line(text, left, top, right, bottom, direction, _pieces(boxes, bottom - top), begin, end)


def _pieces(boxes: list[tuple[float, float, float, float]], height: float) -> tuple[tuple[float, float], ...]:
    """Return (left, right) of what stands together, from left to right."""
    pieces: list[tuple[float, float]] = []
    for left, _, right, _ in sorted(boxes) if len(boxes) > 1 else boxes:
        if pieces and left - pieces[-1][1] < MIN_GUTTER * height:
            pieces[-1] = pieces[-1][0], max(pieces[-1][1], right)
        else:
            pieces.append((left, right))
    return tuple(pieces)


def _rectangles(text_page: "PdfTextPage", begin: int, end: int) -> list[tuple[float, float, float, float]]:
    """Return (left, bottom, right, top) of the stretches that the characters were set in."""
    from pypdfium2 import raw

    left, top, right, bottom = (ctypes.c_double() for _ in range(4))
    found = [
        (left.value, bottom.value, right.value, top.value)
        for number in range(raw.FPDFText_CountRects(text_page, begin, end - begin))
        if raw.FPDFText_GetRect(text_page, number, left, top, right, bottom)
    ]
    if found:
        return found
    box = raw.FS_RECTF()  # letters without a height, as recognised text under a scan may have
    return [
        (box.left, box.bottom, box.right, box.top)
        for number in (begin, end - 1)
        if raw.FPDFText_GetLooseCharBox(text_page, number, box)
    ]


class _Divider:
    """Divides the lines of a page between two characters."""

    def __init__(self, text_page: "PdfTextPage", characters: str) -> None:
        self._text_page = text_page
        self._characters = characters

    def __call__(self, line: Line, x: float) -> tuple[Line, Line]:
        middle = self._first_behind(line, x)
        behind = tuple((max(left, x), right) for left, right in line.pieces if right > x)
        before = tuple((left, min(right, x)) for left, right in line.pieces if left < x)
        first = replace(line, text=_text(self._characters, line.begin, middle), right=x, pieces=before, end=middle)
        second = replace(line, text=_text(self._characters, middle, line.end), left=x, pieces=behind, begin=middle)
        if before:
            first = replace(first, right=before[-1][1])
        if behind:
            second = replace(second, left=behind[0][0])
        return first, second

    def _first_behind(self, line: Line, x: float) -> int:
        from pypdfium2 import raw

        left, top, right, bottom = (ctypes.c_double() for _ in range(4))
        for number in range(line.begin, line.end):
            if self._characters[number].isspace() or not raw.FPDFText_GetCharBox(
                self._text_page, number, left, right, bottom, top
            ):
                continue
            box = in_frame((left.value, bottom.value, right.value, top.value), line.direction)
            if (box[0] + box[2]) / 2 >= x:
                return number
        return line.end


def _shown(page: "PdfPage") -> tuple[bool, bool]:
    """Return whether a page without text shows something that may be text, and whether it sets letters."""
    from pypdfium2 import raw

    kinds = [each.type for each in islice(page.get_objects(max_depth=5), _OBJECTS_SEEN)]
    letters = raw.FPDF_PAGEOBJ_TEXT in kinds
    return letters or raw.FPDF_PAGEOBJ_IMAGE in kinds or kinds.count(raw.FPDF_PAGEOBJ_PATH) >= MIN_DRAWN, letters
