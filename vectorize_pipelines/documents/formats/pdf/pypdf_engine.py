"""PDFs through pypdf: pages that PDFium does not read, and all of them where the settings say so."""

import re
from collections.abc import Iterator
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.documents.errors import DecompressionLimitError
from vectorize_pipelines.documents.formats.pdf.annotations import NOT_TICKED, TICKED
from vectorize_pipelines.documents.formats.pdf.bookmarks import MAX_BOOKMARKS, Bookmark
from vectorize_pipelines.documents.formats.pdf.pages import PageText
from vectorize_pipelines.documents.formats.pdf.pdfium import encrypted
from vectorize_pipelines.documents.formats.values import one_line

if TYPE_CHECKING:
    from pypdf import PageObject

#: pypdf takes a second for so many bytes of a page's drawing instructions, most of which set no text.
_MAX_DRAWING_BYTES = 2 * 2**20
_INLINE_PICTURE = re.compile(rb"(?:\A|\s)BI\s")
_MAX_PARENTS = 10
_HIDDEN = 0x02 | 0x20
_PASSWORD, _RADIO, _PUSH_BUTTON = 1 << 13, 1 << 15, 1 << 16


class PypdfFile:
    """An open document. Every method raises what pypdf raises over damaged bytes."""

    def __init__(self, content: bytes) -> None:
        """Raises `EncryptedDocumentError`; an empty user password is tried."""
        from pypdf import PdfReader

        self._reader = PdfReader(BytesIO(content))
        if self._reader.is_encrypted and not self._reader.decrypt(""):
            raise encrypted()

    def __len__(self) -> int:
        return len(self._reader.pages)

    @property
    def is_dynamic_form(self) -> bool:
        """Whether what the pages show is made by a program in the file, of which nothing here knows."""
        return bool(self._reader.root_object.get("/NeedsRendering")) and self._reader.xfa is not None

    @property
    def information(self) -> dict[str, str]:
        """What the document says of itself."""
        return {key.removeprefix("/"): str(value) for key, value in (self._reader.metadata or {}).items()}

    def attachments(self) -> int:
        """Return how many files are attached to the document."""
        return sum(1 for _ in self._reader.attachment_list)

    def label(self, number: int) -> str:
        """Return what a page, counted from 0, calls itself; empty where it does not."""
        return one_line(self._labels[number]) if number < len(self._labels) else ""

    @cached_property
    def _labels(self) -> list[str]:
        return self._reader.page_labels if "/PageLabels" in self._reader.root_object else []

    def bookmarks(self) -> list[Bookmark]:
        """Return the outline's entries that point at a page."""
        found: list[Bookmark] = []
        levels: list[Iterator[Any]] = [iter(self._reader.outline)]
        while levels and len(found) < MAX_BOOKMARKS:
            entry = next(levels[-1], None)
            if entry is None:
                levels.pop()
            elif isinstance(entry, list):
                levels.append(iter(entry))
            else:
                page = self._reader.get_destination_page_number(entry)
                title = one_line(str(entry.title or ""))
                if title and page is not None and page >= 0:
                    found.append(Bookmark(title, len(levels), page))
        return found

    def line_at(self, number: int, height: float) -> str:
        """Return nothing: pypdf does not say where lines are, and `bookmarks` no heights."""
        del number, height
        return ""

    def page(self, number: int, *, with_comments: bool, thorough: bool) -> PageText:
        """Return the page, counted from 0.

        Unless `thorough`, it is taken for empty where it has many drawing instructions.
        Raises `DecompressionLimitError`.
        """
        from pypdf.errors import LimitReachedError

        try:
            page = self._reader.pages[number]
            contents = page.get_contents()
            drawing = b"" if contents is None else contents.get_data()
            if not drawing or (not thorough and len(drawing) > _MAX_DRAWING_BYTES):
                text = ""
            else:
                text = "\n".join(map(str.strip, page.extract_text().strip().split("\n")))
            parts = [text, *_values(page)]
            if with_comments:
                parts += _comments(page)
        except LimitReachedError as error:
            raise DecompressionLimitError(
                "unpacks to more than the PDF reader allows, or refers to itself; save it again with another program"
            ) from error
        text = "\n".join(filter(None, parts))
        has_pictures = "/XObject" in (page.get("/Resources") or {}) or _INLINE_PICTURE.search(drawing) is not None
        return PageText(text, shows=not text and has_pictures)


def _annotations(page: "PageObject") -> Iterator[Any]:
    for reference in page.get("/Annots") or ():
        annotation = reference.get_object()
        if hasattr(annotation, "get") and not int(annotation.get("/F", 0)) & _HIDDEN:
            yield annotation


def _values(page: "PageObject") -> Iterator[str]:
    """Yield the fields' values with their names, since nothing tells beside which label they stand; text boxes."""
    for annotation in _annotations(page):
        if annotation.get("/Subtype") == "/FreeText":
            yield one_line(str(annotation.get("/Contents", "")))
        elif annotation.get("/Subtype") == "/Widget" and (value := _value(annotation)):
            name = one_line(str(_inherited(annotation, "/TU") or _inherited(annotation, "/T") or ""))
            yield f"{name}: {value}" if name else value


def _value(field: Any) -> str:
    """Return what a field shows."""
    kind, flags = _inherited(field, "/FT"), int(_inherited(field, "/Ff") or 0)
    value = _inherited(field, "/V")
    if kind == "/Btn":
        if flags & _PUSH_BUTTON:
            return ""
        state = field.get("/AS") or ("/Off" if flags & _RADIO else value)
        return NOT_TICKED if state in (None, "/Off") else TICKED
    if kind not in ("/Tx", "/Ch") or value is None or (kind == "/Tx" and flags & _PASSWORD):
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(one_line(str(each)) for each in value)
    data = value.get_data().decode("utf-8", "replace") if hasattr(value, "get_data") else str(value)
    return data.strip()


def _inherited(field: Any, key: str) -> Any:
    for _ in range(_MAX_PARENTS):
        if key in field:
            return field[key]
        if "/Parent" not in field:
            return None
        field = field["/Parent"]
    return None


def _comments(page: "PageObject") -> Iterator[str]:
    """Yield what readers wrote on the page, with who wrote it where it says."""
    for annotation in _annotations(page):
        if annotation.get("/Subtype") in ("/Widget", "/FreeText", "/Link", "/Popup"):
            continue
        if text := one_line(str(annotation.get("/Contents", ""))):
            author = one_line(str(annotation.get("/T", "")))
            yield f"{author}: {text}" if author else text
