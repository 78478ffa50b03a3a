"""PPTX: slide by slide, each a page and a section under its title; tables, diagrams, charts and notes with it."""

from typing import Any

from vectorize_pipelines.core.notices import Notice, listed_numbers, omitted
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import DecompressionLimitError
from vectorize_pipelines.documents.formats.drawings import drawing_text
from vectorize_pipelines.documents.formats.equations import equation_text
from vectorize_pipelines.documents.formats.outline import OutlineBuilder, pages
from vectorize_pipelines.documents.formats.package import (
    Package,
    Relationship,
    attribute,
    core_properties,
    main_part,
    name_of,
    number_of,
    open_package,
)
from vectorize_pipelines.documents.formats.table_text import MAX_COLUMNS, row_line
from vectorize_pipelines.documents.formats.values import iso_date, json_fields, one_line
from vectorize_pipelines.documents.types import ParsedDocument

MAIN_PART = "ppt/presentation.xml"
MAX_SLIDES = 20_000
_TITLES = ("title", "ctrTitle")
#: Of every slide the same, and shown small: date, footer, number; of notes also the picture of the slide.
_FRAMES = ("dt", "ftr", "sldNum", "hdr", "sldImg")


def parse_pptx(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return text, a page and a section for each slide, and core properties.

    A slide's comments follow it, where the settings ask for them, then its notes. Raises
    `DecompressionLimitError`, `EncryptedDocumentError`, `CorruptDocumentError`.
    """
    builder = OutlineBuilder()
    starts: list[int] = []
    lost: list[int] = []
    objects = 0
    with open_package(content, context.settings.max_decompressed_bytes, "PPTX") as package:
        main = main_part(package, MAIN_PART, "PowerPoint presentation")
        for number, part in enumerate(_slides(package, main), start=1):
            starts.append(builder.length)
            root = package.xml(part)
            if root is None or part is None:
                lost.append(number)
                continue
            slide = _Slide(package, part, builder)
            slide.read(root, with_comments=context.settings.office_comments)
            objects += slide.objects
        properties = core_properties(package)
    text, sections = builder.build()
    metadata = {
        "title": one_line(properties.get("title", "")) or builder.first_heading,
        "author": one_line(properties.get("author", "")),
        "created": iso_date(properties.get("created")),
        "modified": iso_date(properties.get("modified")),
        "page_count": len(starts),
        "parser": "pptx",
    }
    return ParsedDocument(
        text, json_fields(metadata), sections, pages(starts, len(text)), notices=_notices(lost, objects)
    )


def _notices(lost: list[int], objects: int) -> tuple[Notice, ...]:
    found: list[Notice] = []
    if lost:
        found.append(omitted(f"{len(lost)} slide(s) are missing in the file ({listed_numbers(lost)})", "repair it"))
    if objects:
        what = f"{objects} embedded object(s), as workbooks in a presentation are, are not in its text"
        found.append(omitted(what, "save them as files of their own"))
    return tuple(found)


def _slides(package: Package, main: str) -> list[str | None]:
    """Return the slides' parts in the order in which they are shown; None for one that is not there.

    Raises `DecompressionLimitError`: a few bytes can ask for one slide any number of times.
    """
    root = package.xml(main)
    relationships = package.relationships(main)
    ids = () if root is None else [attribute(each, "r:id") for each in root.iter() if name_of[each.tag] == "p:sldId"]
    if len(ids) > MAX_SLIDES:
        raise DecompressionLimitError(f"has more than {MAX_SLIDES:,} slides; split it")
    related = [relationships.get(id_ or "") for id_ in ids]
    return [each.target if each else None for each in related]


class _Slide:
    """A walk through one slide, which hands the builder its title and one block after the other."""

    def __init__(self, package: Package, part: str, builder: OutlineBuilder):
        self._package = package
        self._part = part
        self._relationships: dict[str, Relationship] = dict(package.relationships(part))
        self._builder = builder
        self.objects = 0

    def read(self, root: Any, *, with_comments: bool) -> None:
        """Hand over title, shapes, comments and notes."""
        shapes = [each for each in root.iter() if name_of[each.tag] == "p:spTree"]
        title = next((each for tree in shapes for each in tree if _placeholder(each) in _TITLES), None)
        heading = "" if title is None else " ".join(_paragraphs(title))
        if heading:
            self._builder.heading(heading, 1)
        else:
            self._builder.end_section()
        for tree in shapes[:1]:
            self._shapes(tree, title)
        if with_comments:
            for part in self._related("comments"):
                for comment in (each for each in part.iter() if _is_comment(each)):
                    self._builder.block(f"Comment: {one_line(' '.join(_comment_texts(comment)))}")
        for part in self._related("notesSlide"):
            for each in part.iter():
                if name_of[each.tag] == "p:sp" and _placeholder(each) not in _FRAMES:
                    self._block(_paragraphs(each))

    def _related(self, kind: str) -> list[Any]:
        """Return the roots of the parts of a kind that the slide refers to."""
        targets = [each.target for each in self._relationships.values() if each.kind.lower() == kind.lower()]
        return [root for root in map(self._package.xml, targets) if root is not None]

    def _shapes(self, tree: Any, title: Any) -> None:
        for shape in tree:
            name = name_of[shape.tag]
            if shape is title or _placeholder(shape) in _FRAMES:
                continue
            if name == "p:sp":
                self._block(_paragraphs(shape))
            elif name in ("p:grpSp", "mc:AlternateContent", "mc:Choice"):
                self._shapes(shape, title)
            elif name == "p:graphicFrame":
                self._frame(shape)

    def _frame(self, frame: Any) -> None:
        """Hand over a table, a diagram or a chart."""
        self.objects += any(name_of[each.tag] == "p:oleObj" for each in frame.iter())
        for each in frame.iter():
            name = name_of[each.tag]
            if name == "a:tbl":
                rows = [row_line(_cells(row)) for row in each if name_of[row.tag] == "a:tr"]
                self._block([row for row in rows if row])
            elif name in ("c:chart", "dgm:relIds"):
                self._builder.block(drawing_text(self._package, self._relationships, each))

    def _block(self, lines: list[str]) -> None:
        self._builder.block("\n".join(lines))


def _placeholder(shape: Any) -> str | None:
    """Return which place of the layout a shape fills, "title" for the title; "" for the main text, None for none."""
    if name_of[shape.tag] != "p:sp":
        return None
    for properties in shape:
        if name_of[properties.tag] == "p:nvSpPr":
            for each in properties.iter():
                if name_of[each.tag] == "p:ph":
                    return attribute(each, "type") or ""
    return None


def _paragraphs(shape: Any) -> list[str]:
    """Return the lines of a shape's text."""
    bodies = [each for each in shape if name_of[each.tag] in ("p:txBody", "a:txBody")]
    lines = (_line(each) for body in bodies for each in body if name_of[each.tag] == "a:p")
    return [line for line in lines if line]


def _line(paragraph: Any) -> str:
    return "".join(_runs(paragraph)).strip()


def _runs(element: Any) -> list[str]:
    parts: list[str] = []
    for each in element:
        name = name_of[each.tag]
        if name == "a:t":
            parts.append(each.text or "")
        elif name == "a:br":
            parts.append("\n")
        elif name == "m:oMath":
            parts.append(equation_text(each))
        elif name != "mc:Fallback":
            parts += _runs(each)
    return parts


def _cells(row: Any) -> list[str]:
    """Return the texts of a row's cells; those that another one covers are there, and empty."""
    cells = [each for each in row if name_of[each.tag] == "a:tc"][:MAX_COLUMNS]
    covered = [
        number_of(attribute(each, "hMerge"), 0, 1) or number_of(attribute(each, "vMerge"), 0, 1) for each in cells
    ]
    return ["" if hidden else " ".join(_paragraphs(cell)) for cell, hidden in zip(cells, covered, strict=True)]


def _is_comment(element: Any) -> bool:
    return isinstance(element.tag, str) and element.tag.rpartition("}")[2] in ("cm", "reply")


def _comment_texts(comment: Any) -> list[str]:
    """Return the text of a comment: of the older kind in `p:text`, of the newer in a body; without its replies."""
    texts: list[str] = []
    for each in comment:
        bare = each.tag.rpartition("}")[2] if isinstance(each.tag, str) else ""
        if bare == "text":
            texts.append(each.text or "")
        elif bare == "txBody":
            texts += [_line(paragraph) for paragraph in each if name_of[paragraph.tag] == "a:p"]
    return texts
