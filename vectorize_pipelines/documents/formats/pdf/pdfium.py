"""PDFs through PDFium: text with its places, fields, bookmarks, labels of pages, pictures of pages."""

import ctypes
from contextlib import closing
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from vectorize_pipelines.documents.errors import EncryptedDocumentError
from vectorize_pipelines.documents.formats.pdf import annotations
from vectorize_pipelines.documents.formats.pdf.additions import place
from vectorize_pipelines.documents.formats.pdf.bookmarks import MAX_BOOKMARKS, Bookmark
from vectorize_pipelines.documents.formats.pdf.layout import Line, in_frame, main_direction, reading_order
from vectorize_pipelines.documents.formats.pdf.pages import PageText, utf16_text
from vectorize_pipelines.documents.formats.pdf.text_lines import TextLines
from vectorize_pipelines.documents.formats.values import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pypdfium2 import PdfPage

#: A page with fewer drawn lines and shapes than this shows nothing that could be text.
MIN_DRAWN = 20
#: A page with fewer characters, of which a picture covers such a share, may be a scan.
FEW_WORDS, PICTURE_SHARE = 60, 0.7
_OBJECTS_SEEN = 5_000
#: Points.
_RULE_WIDTH = 50.0


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

    def attachments(self) -> int:
        """Return how many files are attached to the document."""
        count: int = self._document.count_attachments()
        return count

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
                found.append(Bookmark(title, entry.level + 1, page, _height(*destination.get_view())))
        return found

    def line_at(self, number: int, height: float) -> str:
        """Return the line that stands at a height of a page, counted from 0, or below it; empty where none does."""
        with closing(self._document[number]) as page, closing(page.get_textpage()) as text_page:
            lines = [line for line in TextLines(text_page).lines() if line.direction == 0 and line.middle >= -height]
            return min(lines, key=lambda line: line.middle).text if lines else ""

    def page(self, number: int, *, with_comments: bool) -> PageText:
        """Return the page, counted from 0."""
        # Closed page by page: a document of thousands would otherwise keep all of them decoded.
        with closing(self._document[number]) as page, closing(page.get_textpage()) as text_page:
            text_lines = TextLines(text_page)
            added = annotations.count(page)
            text = text_lines.plain() if not added else None
            if text is None:
                text = "\n".join(line.text for line in _in_order(page, text_lines))
            if added and with_comments:
                text = "\n".join([text, *annotations.comments(page)]).strip()
            if not text:
                return PageText(text, *_shown(page))
            return PageText(text, has_letters=True, is_picture=len(text) < FEW_WORDS and _is_picture(page))

    def picture(self, number: int, longest: int, per_inch: int) -> "NDArray[Any]":
        """Return a page, counted from 0, as an array (height, width) of grey, no side longer than `longest`."""
        with closing(self._document[number]) as page:
            scale = min(per_inch / 72, longest / max(*page.get_size(), 1.0))
            with closing(page.render(scale=scale, grayscale=True)) as bitmap:
                picture: NDArray[Any] = bitmap.to_numpy().copy()
                return picture


def _height(view: int, places: list[float]) -> float | None:
    """Return the height that a destination of a bookmark names, None for the page as a whole."""
    from pypdfium2 import raw

    if view == raw.PDFDEST_VIEW_XYZ and len(places) > 1:
        return places[1]
    return places[0] if view in (raw.PDFDEST_VIEW_FITH, raw.PDFDEST_VIEW_FITBH) and places else None


def _in_order(page: "PdfPage", text_lines: TextLines) -> list[Line]:
    """Return the lines of a page as a person reads them, with the values of its fields."""
    lines = text_lines.lines()
    ordered = reading_order(lines, text_lines.divide, partial(_rules, page))
    added = annotations.additions(page, _direction(page, lines))
    return place(ordered, added, text_lines.divide) if added else ordered


def _rules(page: "PdfPage", direction: int) -> list[tuple[float, float, float]]:
    """Return (left, right, y) of the rules and of the upper and lower edges of boxes, in the frame of a direction."""
    from pypdfium2 import raw

    found: list[tuple[float, float, float]] = []
    edges = tuple(ctypes.c_float() for _ in range(4))
    for drawn in islice(page.get_objects([raw.FPDF_PAGEOBJ_PATH], max_depth=2), _OBJECTS_SEEN):
        if not raw.FPDFPageObj_GetBounds(drawn, *edges):
            continue
        box = (edges[0].value, edges[1].value, edges[2].value, edges[3].value)
        left, top, right, bottom = in_frame(box, direction)
        if right - left >= _RULE_WIDTH:
            found += [(left, right, top), (left, right, bottom)]
    return found


def _direction(page: "PdfPage", lines: list[Line]) -> int:
    """Return the direction of the page's frame: that of its text, or the one that is upright as it is shown."""
    return main_direction(lines) if lines else (360 - page.get_rotation()) % 360


def _is_picture(page: "PdfPage") -> bool:
    """Return whether one picture covers most of a page."""
    from pypdfium2 import raw

    width, height = page.get_size()
    edges = tuple(ctypes.c_float() for _ in range(4))
    for picture in islice(page.get_objects([raw.FPDF_PAGEOBJ_IMAGE], max_depth=5), _OBJECTS_SEEN):
        if raw.FPDFPageObj_GetBounds(picture, *edges):
            left, bottom, right, top = (edge.value for edge in edges)
            if (right - left) * (top - bottom) >= PICTURE_SHARE * width * height:
                return True
    return False


def _shown(page: "PdfPage") -> tuple[bool, bool]:
    """Return whether a page without text shows something that may be text, and whether it sets letters."""
    from pypdfium2 import raw

    kinds = [each.type for each in islice(page.get_objects(max_depth=5), _OBJECTS_SEEN)]
    letters = raw.FPDF_PAGEOBJ_TEXT in kinds
    return letters or raw.FPDF_PAGEOBJ_IMAGE in kinds or kinds.count(raw.FPDF_PAGEOBJ_PATH) >= MIN_DRAWN, letters
