"""Real files of every format, made in memory for the tests."""

import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from vectorize_pipelines.settings import DocumentSettings

SETTINGS = DocumentSettings()
CASES = Path(__file__).parent / "cases"
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


def xlsx(sheets: dict[str, Sequence[Sequence[Any]]], merged: Sequence[str] = (), hidden: Sequence[str] = ()) -> bytes:
    """A workbook of Excel: rows of texts, numbers, booleans and `=formulas`, which have no value stored."""
    names, state = list(sheets), ' state="hidden"'
    listed = "".join(
        f'<sheet name="{escape(name)}" sheetId="{n}" r:id="r{n}"{state * (name in hidden)}/>'
        for n, name in enumerate(names, start=1)
    )
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    related = "".join(
        f'<Relationship Id="r{n}" Type="{kind}/worksheet" Target="worksheets/sheet{n}.xml"/>'
        for n in range(1, len(names) + 1)
    )
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{package}/content-types"><Default Extension="xml" ContentType="application/xml"/>'
            '<Override PartName="/xl/workbook.xml" ContentType="application/vnd.openxmlformats-officedocument.'
            'spreadsheetml.sheet.main+xml"/></Types>',
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type="{kind}/officeDocument" '
            'Target="xl/workbook.xml"/></Relationships>',
        )
        archive.writestr(
            "xl/workbook.xml", f'<workbook xmlns="{main}" xmlns:r="{kind}"><sheets>{listed}</sheets></workbook>'
        )
        archive.writestr(
            "xl/_rels/workbook.xml.rels", f'<Relationships xmlns="{package}/relationships">{related}</Relationships>'
        )
        for n, rows in enumerate(sheets.values(), start=1):
            cells = "".join(
                f'<row r="{r}">{"".join(_xlsx_cell(f"{chr(65 + c)}{r}", cell) for c, cell in enumerate(row))}</row>'
                for r, row in enumerate(rows, start=1)
            )
            joined = "".join(f'<mergeCell ref="{each}"/>' for each in merged)
            archive.writestr(
                f"xl/worksheets/sheet{n}.xml",
                f'<worksheet xmlns="{main}"><sheetData>{cells}</sheetData>'
                f"{f'<mergeCells>{joined}</mergeCells>' if joined else ''}</worksheet>",
            )
    return buffer.getvalue()


def _xlsx_cell(place: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f'<c r="{place}" t="b"><v>{int(value)}</v></c>'
    if isinstance(value, int | float):
        return f'<c r="{place}"><v>{value}</v></c>'
    if value.startswith("="):
        return f'<c r="{place}"><f>{escape(value[1:])}</f><v></v></c>'
    return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>'
