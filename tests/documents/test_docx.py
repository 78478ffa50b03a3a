"""DOCX: order, structure, what Word hides in its XML, and hostile archives."""

import zipfile
from datetime import datetime
from io import BytesIO

import docx as python_docx
import pytest
from docx.oxml import parse_xml

from tests.documents.builders import ENGLISH, SETTINGS, docx, saved, settings, zip_bomb
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EncryptedDocumentError,
    UnsupportedFormatError,
)
from vectorize_pipelines.documents.parsing import parse
from vectorize_pipelines.documents.types import ParsedDocument

WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def read(content: bytes) -> ParsedDocument:
    return parse(content, "a.docx", SETTINGS)


def test_order_sections_and_metadata() -> None:
    document = read(
        docx(
            ("Title", "Handbook"), "preface", ("Heading 1", "Setup"), ("Heading 2", "Linux"), "first",
            [["Name", "Age"], ["Ada", "36"]], ("List Bullet", "one"), ("List Bullet", "two"),
            ("Heading 1", "End"), "last",
            title="The Handbook", author="Ada", created=datetime(2024, 3, 1, 10, 30), language="en-GB",
        )
    )  # fmt: skip
    assert document.text == (
        "Handbook\n\npreface\n\nSetup\n\nLinux\n\nfirst\n\nName | Age\nAda | 36\none\ntwo\n\nEnd\n\nlast"
    )
    assert [section.path for section in document.sections] == [
        ("Handbook",),
        ("Handbook", "Setup", "Linux"),
        ("Handbook", "End"),
    ]
    wanted = {"title": "The Handbook", "author": "Ada", "created": "2024-03-01T10:30:00+00:00", "language": "en"}
    assert {key: document.metadata[key] for key in wanted} == wanted


def test_a_style_derived_from_a_heading_is_one() -> None:
    document = python_docx.Document()
    style = document.styles.add_style("Chapter", 1)
    style.base_style = document.styles["Heading 1"]
    document.add_paragraph("One", "Chapter")
    document.add_paragraph("text")
    assert read(saved(document)).sections[0].path == ("One",)


def test_insertions_links_and_controls_are_read_deletions_are_not() -> None:
    document = python_docx.Document()
    body = document.element.body
    body.insert(
        0,
        parse_xml(
            f"<w:p {WORD}><w:r><w:t>kept </w:t></w:r><w:ins><w:r><w:t>inserted</w:t></w:r></w:ins>"
            "<w:del><w:r><w:delText>deleted</w:delText></w:r></w:del>"
            "<w:hyperlink><w:r><w:t> linked</w:t><w:tab/><w:t>end</w:t></w:r></w:hyperlink></w:p>"
        ),
    )
    body.insert(
        1,
        parse_xml(f"<w:sdt {WORD}><w:sdtContent><w:p><w:r><w:t>controlled</w:t></w:r></w:p></w:sdtContent></w:sdt>"),
    )
    assert read(saved(document)).text == "kept inserted linked\tend\n\ncontrolled"


def test_a_bomb_is_refused_by_its_declared_size() -> None:
    with pytest.raises(DecompressionLimitError, match="decompression bombs"):
        parse(zip_bomb(5_000_000), "a.docx", settings(max_decompressed_bytes=1_000_000))


def test_a_bomb_that_lies_about_its_size_is_refused() -> None:
    content = bytearray(zip_bomb(5_000_000))
    declared = (5_000_000).to_bytes(4, "little")
    while (position := content.find(declared)) >= 0:
        content[position : position + 4] = (10).to_bytes(4, "little")
    with pytest.raises((DecompressionLimitError, CorruptDocumentError)):
        parse(bytes(content), "a.docx", settings(max_decompressed_bytes=1_000_000))


def test_another_archive_is_no_word_document() -> None:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(CorruptDocumentError, match="not a Word document"):
        read(buffer.getvalue())


def test_a_truncated_file_is_corrupt() -> None:
    with pytest.raises(CorruptDocumentError, match="cannot be read as DOCX"):
        read(docx(ENGLISH)[:-400])


def test_old_and_encrypted_office_files_are_told_apart() -> None:
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 100
    with pytest.raises(UnsupportedFormatError, match=r"save it as \.docx"):
        read(ole)
    with pytest.raises(EncryptedDocumentError, match="remove the password"):
        read(ole + "EncryptedPackage".encode("utf-16-le"))
