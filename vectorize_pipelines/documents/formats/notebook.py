"""IPYNB: the cells of a Jupyter notebook with the text of their outputs; Markdown headings become sections."""

import codecs
import json
import re
from typing import Any

from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import CorruptDocumentError, damage_reported
from vectorize_pipelines.documents.formats.html import parse_html
from vectorize_pipelines.documents.formats.markdown import find_headings
from vectorize_pipelines.documents.formats.outline import Heading, sections
from vectorize_pipelines.documents.formats.text import decode
from vectorize_pipelines.documents.formats.values import clean_text, json_fields
from vectorize_pipelines.documents.types import ParsedDocument

#: Colours of terminals, in what was printed and in tracebacks.
_COLOURS = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]")
_BETWEEN = "\n\n"


def parse_notebook(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return the text of cells and outputs in order, a blank line between them. Raises `CorruptDocumentError`."""
    source, notices = decode(content, context)
    with damage_reported("notebook"):
        notebook = json.loads(source)
    cells = _cells(notebook)
    if cells is None:
        raise CorruptDocumentError("is no Jupyter notebook: it has no cells; save it again from Jupyter")
    texts: list[str] = []
    headings: list[Heading] = []
    position = 0
    for cell in cells:
        for number, text in enumerate(_texts(cell, context)):
            text = clean_text(text).strip()
            if not text:
                continue
            if number == 0 and cell.get("cell_type") == "markdown":
                headings += [
                    Heading(position + each.start, position + each.end, each.level, each.title)
                    for each in find_headings(text)
                ]
            texts.append(text)
            position += len(text) + len(_BETWEEN)
    text = _BETWEEN.join(texts)
    metadata = _metadata(notebook)
    metadata["title"] = metadata["title"] or next((each.title for each in headings), None)
    return ParsedDocument(text, json_fields(metadata | {"parser": "ipynb"}), sections(text, headings), notices=notices)


def _cells(notebook: Any) -> list[dict[str, Any]] | None:
    """Return the cells, of older editions those of all worksheets; None where it is no notebook."""
    if not isinstance(notebook, dict):
        return None
    found = notebook.get("cells")
    if found is None and isinstance(notebook.get("worksheets"), list):
        found = [cell for sheet in notebook["worksheets"] if isinstance(sheet, dict) for cell in _list(sheet, "cells")]
    return [cell for cell in found if isinstance(cell, dict)] if isinstance(found, list) else None


def _texts(cell: dict[str, Any], context: ParseContext) -> list[str]:
    """Return the source of a cell and the text of each output."""
    source = _text(cell.get("source", cell.get("input")))
    if cell.get("cell_type") == "heading":
        source = f"{'#' * (cell['level'] if cell.get('level') in range(1, 7) else 1)} {source}"
        cell["cell_type"] = "markdown"
    outputs = [each for each in _list(cell, "outputs") if isinstance(each, dict)]
    return [source, *(_COLOURS.sub("", _output(each, context)) for each in outputs)]


def _output(output: dict[str, Any], context: ParseContext) -> str:
    if output.get("output_type") in ("error", "pyerr"):
        return f"{_text(output.get('ename'))}: {_text(output.get('evalue'))}"
    data = output.get("data")
    if isinstance(data, dict):
        for kind in ("text/markdown", "text/plain", "text/latex"):
            if kind in data:
                return _text(data[kind])
        if "text/html" in data:
            # With a byte order mark: what is text by now has this encoding, whatever carries or declares another.
            return parse_html(codecs.BOM_UTF8 + _text(data["text/html"]).encode("utf-8", "replace"), context).text
        return ""
    return _text(output.get("text"))


def _text(value: Any) -> str:
    """Return a text that is written as one or as a list of lines."""
    if isinstance(value, list):
        return "".join(each for each in value if isinstance(each, str))
    return value if isinstance(value, str) else ""


def _list(fields: dict[str, Any], name: str) -> list[Any]:
    found = fields.get(name)
    return found if isinstance(found, list) else []


def _metadata(notebook: dict[str, Any]) -> dict[str, Any]:
    given = notebook.get("metadata")
    fields = given if isinstance(given, dict) else {}
    title = fields.get("title", fields.get("name"))
    kernel = fields.get("kernelspec")
    return {
        "title": title if isinstance(title, str) else None,
        "programming_language": kernel.get("language") if isinstance(kernel, dict) else None,
    }
