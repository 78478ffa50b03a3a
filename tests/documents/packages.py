"""Office documents, books and notebooks as the packages that they are, made in memory for the tests."""

import json
import zipfile
from io import BytesIO
from xml.sax.saxutils import escape

OFFICE = "http://schemas.openxmlformats.org"
WORD = f"{OFFICE}/wordprocessingml/2006/main"
NAMESPACES = " ".join(
    f'xmlns:{prefix}="{uri}"'
    for prefix, uri in {
        "w": WORD,
        "a": f"{OFFICE}/drawingml/2006/main",
        "p": f"{OFFICE}/presentationml/2006/main",
        "m": f"{OFFICE}/officeDocument/2006/math",
        "r": f"{OFFICE}/officeDocument/2006/relationships",
        "mc": f"{OFFICE}/markup-compatibility/2006",
        "c": f"{OFFICE}/drawingml/2006/chart",
        "dgm": f"{OFFICE}/drawingml/2006/diagram",
        "wps": "http://schemas.microsoft.com/office/word/2010/wordprocessingShape",
        "v": "urn:schemas-microsoft-com:vml",
        "o": "urn:schemas-microsoft-com:office:office",
    }.items()
)
OPEN_DOCUMENT = (
    " ".join(
        f'xmlns:{prefix}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for prefix, name in {
            "office": "office",
            "text": "text",
            "table": "table",
            "draw": "drawing",
            "presentation": "presentation",
            "meta": "meta",
        }.items()
    )
    + ' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xlink="http://www.w3.org/1999/xlink"'
)


TITLE = 'presentation:class="title"'


def package(parts: dict[str, str | bytes]) -> bytes:
    """A ZIP of the parts."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def relationships(*targets: tuple[str, str]) -> str:
    """A part of relationships rId1, rId2, …, each (kind, target)."""
    each = "".join(
        f'<Relationship Id="rId{n}" Type="{OFFICE}/officeDocument/2006/relationships/{kind}" Target="{target}"/>'
        for n, (kind, target) in enumerate(targets, start=1)
    )
    return f'<Relationships xmlns="{OFFICE}/package/2006/relationships">{each}</Relationships>'


def content_types(kind: str) -> str:
    """The list of types of a package whose main part is a `wordprocessingml.document`, or another kind."""
    return (
        f'<Types xmlns="{OFFICE}/package/2006/content-types"><Override PartName="/main.xml" '
        f'ContentType="application/vnd.openxmlformats-officedocument.{kind}.main+xml"/></Types>'
    )


def word(body: str, *related: tuple[str, str], **parts: str) -> bytes:
    """A Word document of a body; `parts` are files below word/ without their ending, `related` its relationships."""
    return package(
        {
            "[Content_Types].xml": content_types("wordprocessingml.document"),
            "_rels/.rels": relationships(("officeDocument", "word/document.xml")),
            "word/document.xml": f"<w:document {NAMESPACES}><w:body>{body}</w:body></w:document>",
            "word/_rels/document.xml.rels": relationships(*related),
            **{f"word/{name}.xml": content for name, content in parts.items()},
        }
    )


def pptx(*slides: tuple[str, list[str], str]) -> bytes:
    """A presentation of slides, each a title, lines, and notes."""
    parts: dict[str, str | bytes] = {
        "[Content_Types].xml": content_types("presentationml.presentation"),
        "_rels/.rels": relationships(("officeDocument", "ppt/presentation.xml")),
        "ppt/_rels/presentation.xml.rels": relationships(
            *(("slide", f"slides/slide{n}.xml") for n in range(len(slides)))
        ),
        "ppt/presentation.xml": f"<p:presentation {NAMESPACES}><p:sldIdLst>"
        + "".join(f'<p:sldId id="{256 + n}" r:id="rId{n + 1}"/>' for n in range(len(slides)))
        + "</p:sldIdLst></p:presentation>",
    }
    for n, (title, lines, notes) in enumerate(slides):
        shapes = shape(["footer of all"], "ftr") + shape(lines) + shape([title], "title")
        parts[f"ppt/slides/slide{n}.xml"] = slide(shapes)
        if notes:
            parts[f"ppt/slides/_rels/slide{n}.xml.rels"] = relationships(("notesSlide", f"../notesSlides/notes{n}.xml"))
            parts[f"ppt/notesSlides/notes{n}.xml"] = slide(shape([notes], "body"))
    return package(parts)


def slide(shapes: str) -> str:
    """A slide of shapes."""
    return f"<p:sld {NAMESPACES}><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:sld>"


def shape(lines: list[str], placeholder: str = "") -> str:
    """A shape with lines of text."""
    place = f'<p:ph type="{placeholder}"/>' if placeholder else ""
    paragraphs = "".join(f"<a:p><a:r><a:t>{escape(line)}</a:t></a:r></a:p>" for line in lines)
    return f"<p:sp><p:nvSpPr><p:nvPr>{place}</p:nvPr></p:nvSpPr><p:txBody>{paragraphs}</p:txBody></p:sp>"


def odt(body: str, **parts: str) -> bytes:
    """An OpenDocument text of a body; `parts` are further files without their ending."""
    content = f"<office:document-content {OPEN_DOCUMENT}><office:body><office:text>{body}</office:text></office:body>"
    return package(
        {
            "mimetype": "application/vnd.oasis.opendocument.text",
            "content.xml": f"{content}</office:document-content>",
            **{f"{name}.xml": content for name, content in parts.items()},
        }
    )


def odp(*slides: tuple[str, str, str]) -> bytes:
    """An OpenDocument presentation of slides, each a title, a text, and notes."""
    frame = "<draw:frame {}><draw:text-box><text:p>{}</text:p></draw:text-box></draw:frame>"
    pages = "".join(
        f"<draw:page>{frame.format('', text)}{frame.format(TITLE, title)}"
        f"<presentation:notes>{frame.format('', notes)}</presentation:notes></draw:page>"
        for title, text, notes in slides
    )
    return package(
        {
            "mimetype": "application/vnd.oasis.opendocument.presentation",
            "content.xml": f"<office:document-content {OPEN_DOCUMENT}><office:body><office:presentation>{pages}"
            "</office:presentation></office:body></office:document-content>",
        }
    )


def epub(*chapters: str, **parts: str) -> bytes:
    """A book of chapters, the last of which comes first in the package; `parts` are files below META-INF."""
    pages = {
        f"text/{n}.xhtml": f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head>'
        f"<body>{chapter}</body></html>"
        for n, chapter in enumerate(chapters)
    }
    items = "".join(
        f'<item id="c{n}" href="text/{n}.xhtml" media-type="application/xhtml+xml"/>'
        for n in reversed(range(len(chapters)))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    return package(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OPS/book.opf"/></rootfiles></container>',
            **{f"META-INF/{name}.xml": content for name, content in parts.items()},
            "OPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
            "<metadata><dc:title>The Pier</dc:title><dc:creator>Sigrid</dc:creator><dc:language>en</dc:language>"
            "</metadata>"
            '<manifest><item id="toc" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
            f"{items}</manifest><spine>{spine}</spine></package>",
            "OPS/nav.xhtml": '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"><body>'
            '<nav epub:type="toc"><a href="text/0.xhtml">The first chapter</a></nav></body></html>',
            **{f"OPS/{name}": content for name, content in reversed(pages.items())},
        }
    )


def notebook(*cells: tuple[str, str], **metadata: object) -> bytes:
    """A Jupyter notebook of (kind, source) cells; those of code print what they are."""
    outputs = [{"output_type": "stream", "text": ["printed\n"]}]
    return json.dumps(
        {
            "cells": [
                {
                    "cell_type": kind,
                    "source": source.splitlines(keepends=True),
                    "outputs": outputs if kind == "code" else [],
                }
                for kind, source in cells
            ],
            "metadata": metadata,
            "nbformat": 4,
        }
    ).encode()
