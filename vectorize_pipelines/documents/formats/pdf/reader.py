"""The pages of one PDF, each through the engine that reads it. Called by `parse_pdf`."""

import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from vectorize_pipelines.core.extras import missing
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EncryptedDocumentError,
    damage_reported,
)
from vectorize_pipelines.documents.formats.pdf import ocr
from vectorize_pipelines.documents.formats.pdf.pages import PageText
from vectorize_pipelines.documents.formats.pdf.pdfium import PdfiumFile
from vectorize_pipelines.documents.formats.pdf.pypdf_engine import PypdfFile
from vectorize_pipelines.settings import DocumentSettings

#: A page of whose letters fewer have a meaning is unreadable: its fonts do not say which ones they show.
MIN_LEGIBLE = 0.7
#: Of the time that a file may take, so much is for asking pypdf after PDFium, and so much for both and OCR.
SECOND_SHARE, OCR_SHARE = 0.5, 0.8

#: Control characters, half surrogates, private use, and the mark of what is no character.
_MEANINGLESS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\ufffd\U000f0000-\U0010ffff]")
_SAMPLE = 2_000

_T = TypeVar("_T")


@dataclass(slots=True)
class Outcome:
    """What became of the pages, which are numbered from 1.

    engines       how many pages each engine read
    damaged       pages that no engine can open, with the reason
    without       pages without text that show something
    illegible     pages whose text has no meaning
    pictures      pages that are pictures beside a few words
    unrecognised  those of the four above that OCR had no time for
    confidence    of OCR, by page
    """

    engines: Counter[str] = field(default_factory=Counter)
    damaged: dict[int, str] = field(default_factory=dict)
    without: list[int] = field(default_factory=list)
    illegible: list[int] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)
    unrecognised: list[int] = field(default_factory=list)
    confidence: dict[int, float] = field(default_factory=dict)


class PageReader:
    """Reads the pages of a document, and keeps what became of them in `outcome`."""

    def __init__(self, content: bytes, settings: DocumentSettings, stack: ExitStack) -> None:
        """Open the document until `stack` ends. Raises `EncryptedDocumentError`, `CorruptDocumentError`."""
        self._content, self._settings = content, settings
        self._pdfium: PdfiumFile | None = None
        self._pypdf: PypdfFile | CorruptDocumentError | None = None
        #: Why there is no OCR although the settings ask for it.
        self.ocr_missing = missing("documents.ocr", "ocr") if settings.ocr else None
        self._second_deadline = time.monotonic() + SECOND_SHARE * settings.timeout_seconds
        self._ocr_deadline = time.monotonic() + OCR_SHARE * settings.timeout_seconds
        self.outcome = Outcome()
        if settings.pdf_engine != "pypdf" or settings.ocr:
            try:
                with damage_reported("PDF"):
                    self._pdfium = stack.enter_context(PdfiumFile(content))
            except CorruptDocumentError:
                if settings.pdf_engine == "pdfium":
                    raise
        self._main = self._pdfium if self._pdfium and settings.pdf_engine != "pypdf" else self._through_pypdf()

    def ask(self, question: Callable[[PdfiumFile | PypdfFile], _T]) -> _T:
        """Return what the engine that reads the document says of it. Raises `CorruptDocumentError`."""
        with damage_reported("PDF"):
            return question(self._main)

    def page(self, number: int) -> str:
        """Return the text of a page, numbered from 1; empty where there is none, whyever."""
        read: dict[str, PageText] = {}
        reasons: list[str] = []
        for engine in self._engines():
            try:
                read[engine] = self._read(engine, number, thorough=any(page.has_letters for page in read.values()))
            except CorruptDocumentError as error:
                reasons.append(str(error))
                continue
            if legible_share(read[engine].text) >= MIN_LEGIBLE:
                return self._taken(engine, number, read[engine])
        if read and not any(page.shows or page.text for page in read.values()):
            return ""  # a blank page
        if (recognised := self._recognised(number)) is not None:
            return recognised
        texts = [page.text for page in read.values() if page.text]
        if texts:
            self.outcome.illegible.append(number)
            return max(texts, key=legible_share)
        if read:
            self.outcome.without.append(number)
        else:
            self.outcome.damaged[number] = reasons[0]
        return ""

    def _taken(self, engine: str, number: int, page: PageText) -> str:
        """Return the text of a page that an engine reads, or what OCR reads more on one that is a picture."""
        if page.is_picture:
            recognised = self._recognised(number, than=page.text)
            if recognised is not None:
                return recognised
            self.outcome.pictures.append(number)
        self.outcome.engines[engine] += 1
        return page.text

    def _engines(self) -> tuple[str, ...]:
        if self._settings.pdf_engine != "auto":
            return (self._settings.pdf_engine,)
        return ("pypdf",) if self._pdfium is None else ("pdfium", "pypdf")

    def _read(self, engine: str, number: int, *, thorough: bool) -> PageText:
        """Read a page. `thorough`: it may take time, since it is known to set letters.

        Raises `CorruptDocumentError`.
        """
        comments = self._settings.pdf_annotations
        with damage_reported("PDF"):
            if engine == "pdfium":
                assert self._pdfium is not None
                return self._pdfium.page(number - 1, with_comments=comments)
            if self._main is self._pypdf:
                return self._through_pypdf().page(number - 1, with_comments=comments, thorough=True)
            try:
                return self._second(number, thorough=thorough)
            except (EncryptedDocumentError, DecompressionLimitError) as error:
                raise CorruptDocumentError(str(error)) from error

    def _second(self, number: int, *, thorough: bool) -> PageText:
        """Read through pypdf a page that PDFium does not read. Raises what both raise."""
        pypdf = self._through_pypdf()
        if len(pypdf) != len(self._main):
            raise CorruptDocumentError("has another number of pages to pypdf, which leaves damaged ones out")
        if time.monotonic() > self._second_deadline:
            raise CorruptDocumentError("leaves pypdf no time; raise VECTORIZE_DOCUMENTS__TIMEOUT_SECONDS")
        return pypdf.page(number - 1, with_comments=self._settings.pdf_annotations, thorough=thorough)

    def _through_pypdf(self) -> PypdfFile:
        """Return the document as pypdf opens it. Raises `EncryptedDocumentError`, `CorruptDocumentError`."""
        if self._pypdf is None:
            try:
                with damage_reported("PDF"):
                    self._pypdf = PypdfFile(self._content)
            except CorruptDocumentError as error:
                self._pypdf = error
        if isinstance(self._pypdf, CorruptDocumentError):
            raise self._pypdf
        return self._pypdf

    def _recognised(self, number: int, than: str = "") -> str | None:
        """Return what OCR reads on a page; None where it is off, finds no more than a text, or has no time left."""
        if not self._settings.ocr or self.ocr_missing or self._pdfium is None:
            return None
        if time.monotonic() > self._ocr_deadline:
            self.outcome.unrecognised.append(number)
            return None
        try:
            with damage_reported("PDF"):
                picture = self._pdfium.picture(number - 1, ocr.MAX_PIXELS, ocr.PIXELS_PER_INCH)
        except CorruptDocumentError:
            return None  # the page is counted as damaged
        found = ocr.recognise(picture)
        if len(found.text) <= len(than):
            return None
        self.outcome.confidence[number] = found.confidence
        self.outcome.engines["ocr"] += 1
        return found.text


def legible_share(text: str) -> float:
    """Return the share of a text's characters, white space aside, that have a meaning; 0 for none."""
    sample = "".join(text[:_SAMPLE].split())
    if sample.isprintable() and "\ufffd" not in sample:
        return 1.0 if sample else 0.0
    return 1 - len(_MEANINGLESS.findall(sample)) / len(sample)
