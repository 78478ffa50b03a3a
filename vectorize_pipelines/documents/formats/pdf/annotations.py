"""What a PDF has on its pages beside their content: fields of forms, text boxes, comments; read through PDFium."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.documents.formats.pdf.additions import Addition
from vectorize_pipelines.documents.formats.pdf.layout import in_frame
from vectorize_pipelines.documents.formats.pdf.pages import utf16_text
from vectorize_pipelines.documents.formats.values import one_line

if TYPE_CHECKING:
    from pypdfium2 import PdfPage

TICKED, NOT_TICKED = "[x]", "[ ]"
_MAX_OPTIONS = 1_000


def count(page: "PdfPage") -> int:
    """Return how many annotations a page has that may be text: links are none."""
    from pypdfium2 import raw

    return sum(raw.FPDFAnnot_GetSubtype(annotation) != raw.FPDF_ANNOT_LINK for annotation in _annotations(page))


def additions(page: "PdfPage", direction: int) -> list[Addition]:
    """Return the values of a page's fields and its text boxes, in a frame of that direction."""
    from pypdfium2 import raw

    found: list[Addition] = []
    for annotation in _annotations(page):
        subtype = raw.FPDFAnnot_GetSubtype(annotation)
        ticked = False
        if subtype == raw.FPDF_ANNOT_WIDGET and page.formenv:
            text, ticked = _field(page, annotation)
        elif subtype == raw.FPDF_ANNOT_FREETEXT:
            text = _string(annotation, b"Contents")
        else:
            continue
        box = raw.FS_RECTF()
        if text and raw.FPDFAnnot_GetRect(annotation, box):
            corners = (
                min(box.left, box.right),
                min(box.bottom, box.top),
                max(box.left, box.right),
                max(box.bottom, box.top),
            )
            found.append(Addition(text, *in_frame(corners, direction), ticked))
    return found


def comments(page: "PdfPage") -> list[str]:
    """Return what readers wrote on a page, one line each, with who wrote it where it says."""
    from pypdfium2 import raw

    others = (raw.FPDF_ANNOT_WIDGET, raw.FPDF_ANNOT_FREETEXT, raw.FPDF_ANNOT_LINK, raw.FPDF_ANNOT_POPUP)
    found = []
    for annotation in _annotations(page):
        if raw.FPDFAnnot_GetSubtype(annotation) in others:
            continue
        if text := one_line(_string(annotation, b"Contents")):
            author = one_line(_string(annotation, b"T"))
            found.append(f"{author}: {text}" if author else text)
    return found


def _annotations(page: "PdfPage") -> Iterator[Any]:
    """Yield the annotations that are seen on the page; each is closed behind the caller."""
    from pypdfium2 import raw

    hidden = raw.FPDF_ANNOT_FLAG_HIDDEN | raw.FPDF_ANNOT_FLAG_NOVIEW
    for number in range(raw.FPDFPage_GetAnnotCount(page)):
        annotation = raw.FPDFPage_GetAnnot(page, number)
        if not annotation:
            continue
        try:
            if not raw.FPDFAnnot_GetFlags(annotation) & hidden:
                yield annotation
        finally:
            raw.FPDFPage_CloseAnnot(annotation)


def _field(page: "PdfPage", annotation: Any) -> tuple[str, bool]:
    """Return what a field shows, and whether it is a box to tick; buttons, signatures and passwords show nothing."""
    from pypdfium2 import raw

    form = page.formenv
    kind = raw.FPDFAnnot_GetFormFieldType(form, annotation)
    if kind in (raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON):
        return (TICKED if raw.FPDFAnnot_IsChecked(form, annotation) else NOT_TICKED), True
    if kind in (raw.FPDF_FORMFIELD_COMBOBOX, raw.FPDF_FORMFIELD_LISTBOX):
        if text := ", ".join(filter(None, _chosen(form, annotation))):
            return text, False
    elif kind != raw.FPDF_FORMFIELD_TEXTFIELD:
        return "", False
    if raw.FPDFAnnot_GetFormFieldFlags(form, annotation) & raw.FPDF_FORMFLAG_TEXT_PASSWORD and (
        kind == raw.FPDF_FORMFIELD_TEXTFIELD
    ):
        return "", False
    return utf16_text(partial(raw.FPDFAnnot_GetFormFieldValue, form, annotation)), False


def _chosen(form: Any, annotation: Any) -> Iterator[str]:
    """Yield what the options are called that are chosen."""
    from pypdfium2 import raw

    for number in range(min(raw.FPDFAnnot_GetOptionCount(form, annotation), _MAX_OPTIONS)):
        if raw.FPDFAnnot_IsOptionSelected(form, annotation, number):
            yield one_line(utf16_text(partial(raw.FPDFAnnot_GetOptionLabel, form, annotation, number)))


def _string(annotation: Any, key: bytes) -> str:
    from pypdfium2 import raw

    return utf16_text(partial(raw.FPDFAnnot_GetStringValue, annotation, key))
