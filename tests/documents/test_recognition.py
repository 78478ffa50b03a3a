"""A document's format: the mark of its content, then what its carrier says, then its name."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.documents.builders import docx, pdf
from vectorize_pipelines.documents.errors import CorruptDocumentError, NotTextError, UnsupportedFormatError
from vectorize_pipelines.documents.recognition import FORMATS, recognised_format
from vectorize_pipelines.errors import ItemError

PAGE = b"<!DOCTYPE html><title>Lighthouse</title><p>It stands on a rock."
SHEET = b"zip,town\n0213,Oslo\n"


@pytest.mark.parametrize(
    ("content", "name", "media_type", "format_"),
    [
        # By its mark, whatever anybody says.
        ("pdf", "https://example.com/pdf/2101.00001v2", "application/pdf", "pdf"),
        ("pdf", "https://example.com/pdf/2101.00001v2", None, "pdf"),
        ("pdf", "download", "application/octet-stream", "pdf"),
        ("pdf", "a.txt", "text/plain", "pdf"),
        ("pdf", "a.html", "text/html; charset=utf-8", "pdf"),
        ("docx", "a.bin", "application/zip", "docx"),
        # By its media type, before its name.
        (PAGE, "https://example.com/wiki/Lighthouse", "text/html", "html"),
        (PAGE, "https://example.com/wiki/Lighthouse", "TEXT/HTML;charset=UTF-8", "html"),
        (PAGE, "https://example.com/index.php", "application/xhtml+xml", "html"),
        (SHEET, "https://example.com/export.txt", "text/csv; header=present", "csv"),
        (SHEET, "https://example.com/v1.2", "text/plain", "text"),
        (SHEET, "", "text/plain;charset=koi8-r", "text"),
        (SHEET, "notes", "text/x-rst", "text"),
        # By its name, where the media type says nothing, or only that it is text.
        (SHEET, "raw/main/table.csv", "text/plain", "csv"),
        (SHEET, "raw/main/README.md", "text/plain; charset=utf-8", "markdown"),
        (SHEET, "table.csv", "application/octet-stream", "csv"),
        (SHEET, "table.csv", "", "csv"),
        (SHEET, "table.csv", "nonsense", "csv"),
        (SHEET, "table.csv", "application/pdf", "csv"),
        (SHEET, "a.b/TABLE.CSV", None, "csv"),
        (b'{"text": "a"}\n{"text": "b"}', "export.jsonl", "application/x-ndjson", "json-lines"),
        (b'{"text": "a"}\n{"text": "b"}', "export.jsonl", "application/json", "json-lines"),
        # By the mark of a page, where nothing else says anything.
        (PAGE, "wiki/Lighthouse", None, "html"),
        (PAGE, "wiki/Lighthouse", "binary/octet-stream", "html"),
        (b"\xef\xbb\xbf\n<!-- a --> <html lang=en>", "page.asp", None, "html"),
        (b"<?xml version='1.0'?><!DOCTYPE HTML PUBLIC '-//W3C//DTD XHTML 1.0'>", "page", None, "html"),
    ],
)
def test_what_tells_the_format(content: bytes | str, name: str, media_type: str | None, format_: str) -> None:
    made = {"pdf": lambda: pdf(["a page"]), "docx": lambda: docx("a paragraph")}
    whole = made[content]() if isinstance(content, str) else content
    assert recognised_format(whole, name, media_type).name == format_


@pytest.mark.parametrize(
    ("content", "name", "media_type", "error", "said"),
    [
        (SHEET, "README", None, UnsupportedFormatError, "has no file ending; supported are .txt"),
        (SHEET, "a.xyz", None, UnsupportedFormatError, "the unsupported ending .xyz; supported"),
        (SHEET, "a", "audio/mpeg; x=y", UnsupportedFormatError, "unsupported content type audio/mpeg and no mark"),
        (PAGE, "report.pdf", None, CorruptDocumentError, "is no PDF file but HTML"),
        (PAGE, "https://example.com/1", "application/pdf", CorruptDocumentError, "is no PDF file but HTML"),
        (b"\x89PNG\r\n\x1a\n", "a.txt", "text/plain", NotTextError, "a PNG image.*image_vectorization"),
    ],
)
def test_what_tells_no_format(
    content: bytes, name: str, media_type: str | None, error: type[ItemError], said: str
) -> None:
    with pytest.raises(error, match=said):
        recognised_format(content, name, media_type)


def test_a_text_that_begins_with_the_mark_of_parquet_is_text() -> None:
    assert recognised_format(b"PAR1 is a part of the pier", "a.txt").name == "text"


def test_every_media_type_stands_for_one_format() -> None:
    media_types = [media_type for each in FORMATS for media_type in each.media_types]
    assert len(set(media_types)) == len(media_types)
    assert all(media_type == media_type.lower() and ";" not in media_type for media_type in media_types)


@given(st.binary(max_size=40), st.text(max_size=20), st.none() | st.text(max_size=30))
def test_anything_has_a_format_or_a_reason_why_not(content: bytes, name: str, media_type: str | None) -> None:
    with contextlib.suppress(ItemError):  # and nothing else
        assert recognised_format(content, name, media_type) in FORMATS
