"""Presentations, OpenDocument, RTF and books: order, sections, pages, notes, and what is not shown."""

import pytest

from tests.documents import packages
from tests.documents.builders import SETTINGS, settings
from vectorize_pipelines.documents import ParsedDocument, parse
from vectorize_pipelines.documents.errors import EmptyDocumentError, EncryptedDocumentError, UnsupportedFormatError

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 100


def read(content: bytes, name: str, **changes: object) -> ParsedDocument:
    return parse(content, name, settings(**changes) if changes else SETTINGS)


def paths(document: ParsedDocument) -> list[tuple[str, ...]]:
    return [section.path for section in document.sections]


def test_slides_are_pages_and_sections_with_their_notes() -> None:
    document = read(packages.pptx(("Berths", ["North", "South"], "Nine of them"), ("Fees", ["Forty"], "")), "a.pptx")
    assert document.text == "Berths\n\nNorth\nSouth\n\nNine of them\n\nFees\n\nForty"
    assert [document.text[page.start : page.end].strip()[:6] for page in document.pages] == ["Berths", "Fees\n\n"]
    assert paths(document) == [("Berths",), ("Fees",)]
    assert document.metadata["page_count"] == 2


def test_a_slide_without_a_title_is_no_part_of_the_one_before() -> None:
    slides = (("Berths", "North", ""), ("", "South", ""), ("Fees", "Forty", ""))
    for content, name in (
        (packages.pptx(*((title, [text], notes) for title, text, notes in slides)), "a.pptx"),
        (packages.odp(*slides), "a.odp"),
    ):
        document = read(content, name)
        assert paths(document) == [("Berths",), (), ("Fees",)]
        assert document.text[document.sections[1].start : document.sections[1].end].strip() == "South"
    assert read(packages.pptx(("", ["South"], "")), "a.pptx").sections == ()


def test_a_presentation_without_slides_is_empty() -> None:
    for content, name in ((packages.pptx(), "a.pptx"), (packages.odp(), "a.odp")):
        with pytest.raises(EmptyDocumentError):
            read(content, name)


def test_a_slides_table_keeps_empty_cells_and_its_groups_are_read() -> None:
    cells = "".join(f"<a:tc>{cell}</a:tc>" for cell in ("<a:txBody><a:p><a:r><a:t>A</a:t></a:r></a:p></a:txBody>", ""))
    last = "<a:tc><a:txBody><a:p><a:r><a:t>B</a:t></a:r></a:p></a:txBody></a:tc>"
    table = f"<p:graphicFrame><a:graphic><a:tbl><a:tr>{cells}{last}</a:tr></a:tbl></a:graphic></p:graphicFrame>"
    group = f"<p:grpSp>{packages.shape(['inside'])}</p:grpSp>"
    content = packages.package(
        {
            "ppt/presentation.xml": f'<p:presentation {packages.NAMESPACES}><p:sldId r:id="rId1"/>'
            '<p:sldId r:id="rId2"/></p:presentation>',
            "ppt/_rels/presentation.xml.rels": packages.relationships(("slide", "s.xml"), ("slide", "NULL")),
            "ppt/s.xml": packages.slide(table + group),
        }
    )
    document = read(content, "a.pptx")
    assert document.text == "A | | B\n\ninside"
    assert "1 slide(s) are missing in the file (2)" in document.notices[0].what


def test_opendocument_text() -> None:
    body = (
        "<text:tracked-changes><text:p>deleted</text:p></text:tracked-changes>"
        '<text:h text:outline-level="1">Berths</text:h>'
        "<text:p>Nine  of<text:s text:c='2'/>them<text:note><text:note-citation>1</text:note-citation><text:note-body>"
        "<text:p>As of May</text:p></text:note-body></text:note>.<draw:frame><draw:text-box><text:h>Boxed</text:h>"
        "</draw:text-box></draw:frame></text:p>"
        "<text:list><text:list-item><text:p>one</text:p></text:list-item><text:list-item><text:p>two</text:p>"
        "</text:list-item></text:list>"
        "<table:table><table:table-row><table:table-cell><text:p>A</text:p></table:table-cell>"
        "<table:table-cell/><table:table-cell><text:p>B</text:p></table:table-cell></table:table-row></table:table>"
        '<text:section text:display="none"><text:p>secret</text:p></text:section>'
        "<text:p><text:ruby><text:ruby-base>東京</text:ruby-base><text:ruby-text>とう</text:ruby-text></text:ruby></text:p>"
    )
    meta = f"<office:document-meta {packages.OPEN_DOCUMENT}><office:meta><dc:title>The Pier</dc:title></office:meta>"
    document = read(packages.odt(body, meta=f"{meta}</office:document-meta>"), "a.odt")
    assert document.text == ("Berths\n\nNine of  them.\n\nAs of May\n\nBoxed\none\ntwo\n\nA | | B\n\n東京")
    assert paths(document) == [("Berths",)]
    assert document.metadata["title"] == "The Pier"


def test_opendocument_presentation() -> None:
    document = read(packages.odp(("Berths", "Nine", "Ask Ada"), ("Fees", "Forty", "")), "a.odp")
    assert document.text == "Berths\n\nNine\n\nAsk Ada\n\nFees\n\nForty"
    assert [page.number for page in document.pages] == [1, 2]
    assert paths(document) == [("Berths",), ("Fees",)]


def test_an_encrypted_opendocument_is_named() -> None:
    manifest = packages.package(
        {
            "mimetype": "application/vnd.oasis.opendocument.text",
            "content.xml": "\x01\x02",
            "META-INF/manifest.xml": '<m:manifest xmlns:m="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0">'
            "<m:encryption-data/></m:manifest>",
        }
    )
    with pytest.raises(EncryptedDocumentError, match="remove the password"):
        read(manifest, "a.odt")


def test_rtf_with_code_pages_hidden_text_tables_and_notes() -> None:
    content = (
        rb"{\rtf1\ansi\ansicpg1252\deff0{\fonttbl{\f0\fcharset0 A;}{\f1\fcharset204 Arial;}{\f2\fcharset128 Gothic;}}"
        rb"{\stylesheet{\s1 heading 1;}}{\info{\title The Pier}{\author Ada}{\creatim\yr2024\mo5\dy6\hr7\min8}}"
        rb"{\*\generator x;}\pard\s1 Gr\'fc\'dfe\par"
        rb"\pard\f1\'cf\'f0\'e8\'e2\'e5\'f2 {\v hidden}\f0 caf\u233?{\footnote\pard A {\i note}\par}\par"
        rb"\f2\'93\'fa\'96\'7b\plain  \u-10179 ?\u-8704 ?{\deleted gone}\par"
        rb"\trowd\intbl A\cell\cell B\cell\row\trowd\intbl\cell C\cell\cell\row\pard end}"
    )
    document = read(content, "a.rtf")
    assert document.text == "Grüße\n\nПривет café\n\nA note\n\n日本 😀\n\nA | | B\n| C |\n\nend"
    assert paths(document) == [("Grüße",)]
    wanted = {"title": "The Pier", "author": "Ada", "created": "2024-05-06T07:08:00"}
    assert {key: document.metadata[key] for key in wanted} == wanted


def test_a_note_inside_of_a_text_box_of_an_rtf_is_read() -> None:
    document = read(rb"{\rtf1 one{\shp{\*\shpinst{\shptxt box{\footnote note}\par}}}\par two\par}", "a.rtf")
    assert document.text == "one\n\nbox\nnote\n\ntwo"


def test_objects_in_an_rtf_are_said_to_be_left_out() -> None:
    document = read(rb"{\rtf1 one {\object\objemb{\*\objdata 0102}{\result {\pict 00}}} two\par}", "a.rtf")
    assert document.text.split() == ["one", "two"]
    assert document.notices[0].what.startswith("1 embedded object(s)")


def test_an_rtf_that_ends_in_the_middle_says_so() -> None:
    document = read(rb"{\rtf1 one \par {\b two", "a.rtf")
    assert document.text == "one\n\ntwo"
    assert document.notices[0].kind == "omitted"


def test_a_book_in_the_order_of_its_spine() -> None:
    document = read(packages.epub("<p>It began &#x2014; so.</p>", "<h1>Second</h1><p>It went on.</p>"), "a.epub")
    assert document.text == "It began — so.\n\nSecond\n\nIt went on."
    assert paths(document) == [("The first chapter",), ("Second",)]
    wanted = {"title": "The Pier", "author": "Sigrid", "language": "en"}
    assert {key: document.metadata[key] for key in wanted} == wanted


def test_a_protected_book_is_named_and_one_with_hidden_fonts_read() -> None:
    protection = '<encryption><EncryptedData><EncryptionMethod Algorithm="{}"/></EncryptedData></encryption>'.format
    with pytest.raises(EncryptedDocumentError, match="DRM"):
        read(packages.epub("<p>x</p>", encryption=protection("http://www.w3.org/2001/04/xmlenc#aes128-cbc")), "a.epub")
    fonts = packages.epub("<p>text</p>", encryption=protection("http://www.idpf.org/2008/embedding"))
    assert read(fonts, "a.epub").text == "text"


@pytest.mark.parametrize(
    ("stream", "shown"),
    [("WordDocument", r"Word before 2007; save it as \.docx"), ("PowerPoint Document", r"save it as \.pptx")],
)
def test_formats_of_old_programs_are_named_with_the_remedy(stream: str, shown: str) -> None:
    with pytest.raises(UnsupportedFormatError, match=shown):
        read(OLE + stream.encode("utf-16-le"), "a.docx")


@pytest.mark.parametrize(
    "comment",
    [
        "<p:cmLst {}><p:cm><p:text>Ask Ada</p:text></p:cm></p:cmLst>",
        '<x:cmLst xmlns:x="http://schemas.microsoft.com/office/powerpoint/2018/8/main" {}><x:cm><x:txBody><a:p><a:r>'
        "<a:t>Ask Ada</a:t></a:r></a:p></x:txBody></x:cm></x:cmLst>",
    ],
)
def test_a_slides_comments_of_both_kinds(comment: str) -> None:
    content = packages.package(
        {
            "ppt/presentation.xml": f'<p:presentation {packages.NAMESPACES}><p:sldId r:id="rId1"/></p:presentation>',
            "ppt/_rels/presentation.xml.rels": packages.relationships(("slide", "slides/s.xml")),
            "ppt/slides/s.xml": packages.slide(packages.shape(["Nine berths"])),
            "ppt/slides/_rels/s.xml.rels": packages.relationships(("comments", "../comments/c.xml")),
            "ppt/comments/c.xml": comment.format(packages.NAMESPACES),
        }
    )
    assert read(content, "a.pptx").text == "Nine berths\n\nComment: Ask Ada"
    assert read(content, "a.pptx", office_comments=False).text == "Nine berths"
