"""Numbers of an Excel workbook that are shown with zeros before them, as postal codes are: 2134 as 02134.

The library that reads workbooks tells values, and of their formats only which are dates. Called by `workbook`.
"""

import posixpath
import re
import zipfile
from collections.abc import Iterator
from typing import Any

#: A format of nothing but digits that are always shown: `00000`.
_PADDED = re.compile(r"0{2,15}")
_CELL = re.compile(rb'<c\s+r="([A-Z]{1,3})([0-9]{1,7})"([^>]*)>\s*<v>([0-9]{1,15})</v>')
_STYLE = re.compile(rb'\bs="([0-9]{1,6})"')
_OTHER_TYPE = re.compile(rb'\bt="(?!n")')


def padded_numbers(archive: zipfile.ZipFile) -> dict[str, dict[tuple[int, int], str]]:
    """Return by sheet the numbers, by row and column from 0, as they are shown. Raises what damaged files do."""
    widths = _padded_styles(archive)
    if not widths:
        return {}
    return {name: dict(_cells(archive.read(part), widths)) for name, part in _sheets(archive)}


def _padded_styles(archive: zipfile.ZipFile) -> dict[int, int]:
    """Return how many digits are shown, by the number of the style that cells name."""
    root = _xml(archive, "xl/styles.xml")
    if root is None:
        return {}
    formats = {
        each.get("numFmtId"): len(code)
        for each in _named(root, "numFmt")
        if _PADDED.fullmatch(code := each.get("formatCode", ""))
    }
    styles = next(_named(root, "cellXfs"), ())
    return {
        number: formats[each.get("numFmtId")] for number, each in enumerate(styles) if each.get("numFmtId") in formats
    }


def _cells(sheet: bytes, widths: dict[int, int]) -> Iterator[tuple[tuple[int, int], str]]:
    for letters, row, attributes, digits in _CELL.findall(sheet):
        style = _STYLE.search(attributes)
        width = widths.get(int(style[1])) if style else None
        if width and not _OTHER_TYPE.search(attributes):
            yield (int(row) - 1, column_number(letters) - 1), digits.decode().zfill(width)


def column_number(letters: bytes) -> int:
    """Return the number of a column, from 1: 27 of `AA`."""
    number = 0
    for letter in letters:
        number = number * 26 + letter - ord("A") + 1
    return number


def _sheets(archive: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """Yield name and part of each sheet."""
    workbook, relations = _xml(archive, "xl/workbook.xml"), _xml(archive, "xl/_rels/workbook.xml.rels")
    if workbook is None or relations is None:
        return
    targets = {each.get("Id"): each.get("Target", "") for each in relations}
    for sheet in _named(workbook, "sheet"):
        id_ = next((value for name, value in sheet.attrib.items() if name.endswith("}id")), None)
        part = posixpath.normpath(posixpath.join("/xl", targets.get(id_, ""))).lstrip("/")
        if part in archive.namelist():
            yield sheet.get("name", ""), part


def _xml(archive: zipfile.ZipFile, part: str) -> Any:
    from xml.etree.ElementTree import fromstring

    return fromstring(archive.read(part)) if part in archive.namelist() else None


def _named(root: Any, name: str) -> Iterator[Any]:
    """Yield the elements of this name, in whichever edition of the standard's namespace."""
    return (each for each in root.iter() if each.tag.rpartition("}")[2] == name)
