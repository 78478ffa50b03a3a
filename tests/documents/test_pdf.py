"""PDF through both engines."""

import pytest

from tests.documents.builders import ENGLISH, encrypted_pdf, pdf, settings
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EncryptedDocumentError,
    NoTextLayerError,
)
from vectorize_pipelines.documents.parsing import parse
from vectorize_pipelines.documents.types import ParsedDocument

ENGINES = ["auto", "pdfium", "pypdf"]


def read(content: bytes, engine: str = "auto", name: str = "a.pdf") -> ParsedDocument:
    return parse(content, name, settings(pdf_engine=engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_text_pages_and_metadata(engine: str) -> None:
    document = read(pdf(["First page.\nSecond line.", "", "Third page."], title="Report", author="Ada"), engine)
    texts = [document.text[page.start : page.end].strip() for page in document.pages]
    assert texts == ["First page.\nSecond line.", "", "Third page."]
    assert [page.number for page in document.pages] == [1, 2, 3]
    assert document.pages[0].start == 0
    assert document.pages[-1].end == len(document.text)
    assert document.metadata["title"] == "Report"
    assert document.metadata["author"] == "Ada"
    assert document.metadata["page_count"] == 3
    assert str(document.metadata["created"]).startswith("20")
    assert document.metadata["parser"] == ("pypdf" if engine == "pypdf" else "pdfium")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_library_writes_where_nobody_names_a_document_is_no_name(engine: str) -> None:
    assert not {"title", "author"} & set(read(pdf([ENGLISH]), engine).metadata)
    assert read(pdf([ENGLISH], title="untitled II"), engine).metadata["title"] == "untitled II"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_password_is_named_as_the_reason(engine: str) -> None:
    with pytest.raises(EncryptedDocumentError, match="is encrypted; remove the password"):
        read(encrypted_pdf(pdf([ENGLISH]), "secret"), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_user_password_opens(engine: str) -> None:
    assert read(encrypted_pdf(pdf([ENGLISH]), ""), engine).text.strip() == ENGLISH


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("content", [b"%PDF-1.7\n" + b"junk " * 100, pdf([ENGLISH])[:200]])
def test_a_damaged_file_is_corrupt(engine: str, content: bytes) -> None:
    with pytest.raises((CorruptDocumentError, NoTextLayerError)):
        read(content, engine)


def test_what_is_no_pdf_at_all_is_said_to_be() -> None:
    with pytest.raises(CorruptDocumentError, match="no PDF file but HTML"):
        read(b"<html>Please log in</html>")


def test_pypdf_takes_over_where_pdfium_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import pypdfium2

    def fail(*_: object) -> None:
        raise pypdfium2.PdfiumError("Failed to load document", err_code=3)

    monkeypatch.setattr(pypdfium2, "PdfDocument", fail)
    assert read(pdf([ENGLISH])).metadata["parser"] == "pypdf"


@pytest.mark.parametrize("engine", ENGINES)
def test_more_text_than_the_limit_is_refused(engine: str) -> None:
    with pytest.raises(DecompressionLimitError):
        parse(pdf([ENGLISH] * 3), "a.pdf", settings(pdf_engine=engine, max_decompressed_bytes=150))


def test_a_pdf_under_another_name_is_read_as_pdf() -> None:
    assert read(pdf([ENGLISH]), name="a.txt").text.strip() == ENGLISH
