"""Real files of every format, made in memory for the tests."""

import zipfile
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from vectorize_pipelines.settings import DocumentSettings

SETTINGS = DocumentSettings()
ENGLISH = "The quick brown fox jumps over the lazy dog while the sleepy cat watches from the old wooden fence."
CHINESE = "向量数据库是一种专门用于存储和检索高维向量的数据库系统。它广泛应用于语义搜索和推荐系统。"


def settings(**changes: Any) -> DocumentSettings:
    """The default settings with some of them changed."""
    return DocumentSettings(**changes)


def pdf(pages: Sequence[str], **information: str) -> bytes:
    """A PDF with one line of text per line of each page."""
    from reportlab.pdfgen.canvas import Canvas

    buffer = BytesIO()
    canvas = Canvas(buffer)
    if "title" in information:
        canvas.setTitle(information["title"])
    if "author" in information:
        canvas.setAuthor(information["author"])
    for page in pages:
        for number, line in enumerate(page.split("\n")):
            canvas.drawString(72, 750 - 20 * number, line)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def encrypted_pdf(content: bytes, user_password: str) -> bytes:
    """The PDF again, behind a password."""
    from pypdf import PdfWriter

    writer = PdfWriter(clone_from=BytesIO(content))
    writer.encrypt(user_password=user_password, owner_password="owner", algorithm="AES-256")
    buffer = BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def docx(*blocks: Any, **properties: Any) -> bytes:
    """A DOCX of the blocks: a text, (style, text), or a table as a list of rows."""
    import docx as python_docx

    document = python_docx.Document()
    for name, value in properties.items():
        setattr(document.core_properties, name, value)
    for block in blocks:
        if isinstance(block, list):
            table = document.add_table(rows=0, cols=len(block[0]))
            for row in block:
                for cell, text in zip(table.add_row().cells, row, strict=True):
                    cell.text = text
        else:
            style, text = block if isinstance(block, tuple) else (None, block)
            document.add_paragraph(text, style)
    return saved(document)


def saved(document: Any) -> bytes:
    """The bytes of a python-docx document."""
    buffer = BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def zip_bomb(size: int) -> bytes:
    """A DOCX by its members' names, of which one unpacks to `size` zeros."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", b"\0" * size)
    return buffer.getvalue()


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    """A Parquet file of the columns."""
    import pyarrow as pa
    import pyarrow.parquet

    buffer = BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()
