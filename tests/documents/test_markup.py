"""Markdown and HTML: visible text, sections by heading, metadata."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.documents.builders import CHINESE, ENGLISH, SETTINGS
from vectorize_pipelines.documents.errors import CorruptDocumentError, EmptyDocumentError
from vectorize_pipelines.documents.parsing import parse
from vectorize_pipelines.documents.types import ParsedDocument


def markdown(text: str) -> ParsedDocument:
    return parse(text.encode(), "a.md", SETTINGS)


def html(text: str) -> ParsedDocument:
    return parse(text.encode(), "a.html", SETTINGS)


def sections_of(document: ParsedDocument) -> list[tuple[tuple[str, ...], str]]:
    return [(section.path, document.text[section.start : section.end].strip()) for section in document.sections]


def test_markdown_headings_make_nested_sections() -> None:
    document = markdown("intro\n\n# Guide\n\nhello\n\n## Install ##\npip\n\nUsage\n-----\nrun\n\n# End\nbye\n")
    assert sections_of(document) == [
        ((), "intro"),
        (("Guide",), "# Guide\n\nhello"),
        (("Guide", "Install"), "## Install ##\npip"),
        (("Guide", "Usage"), "Usage\n-----\nrun"),
        (("End",), "# End\nbye"),
    ]
    assert document.metadata["title"] == "Guide"


def test_a_heading_without_body_belongs_to_what_follows() -> None:
    assert sections_of(markdown("# Guide\n\n## Install\nrun it\n\n## Empty\n")) == [
        (("Guide", "Install"), "# Guide\n\n## Install\nrun it"),
        (("Guide", "Empty"), "## Empty"),
    ]


def test_fenced_code_and_rulers_are_no_headings() -> None:
    document = markdown("```sh\n# a comment\n```\n\n~~~\n# b\n```\n~~~\n#hashtag\n\n- item\n---\n\ntext\n\n---\n")
    assert document.sections == ()


def test_heading_titles_lose_their_markup() -> None:
    assert markdown("# The **[bold](x)** `code_name` _it_\nx").sections[0].path == ("The bold code_name it",)


def test_front_matter_becomes_metadata() -> None:
    document = markdown(
        f"---\ntitle: My Notes\nauthor: Ada\ndate: 2024-03-01\ntags: [a, b]\nempty:\n---\n# First\n{ENGLISH}\n"
    )
    assert document.text == f"# First\n{ENGLISH}\n"
    assert document.metadata == {
        "title": "My Notes", "author": "Ada", "date": "2024-03-01", "created": "2024-03-01", "tags": ["a", "b"],
        "parser": "markdown", "language": "en",
    }  # fmt: skip


@pytest.mark.parametrize("top", ["---\nnot a mapping\n---\n", "---\n: [\n---\n", "---\nno end\n"])
def test_what_only_looks_like_front_matter_is_text(top: str) -> None:
    assert markdown(f"{top}body").text == f"{top}body"


def test_a_yaml_bomb_is_refused() -> None:
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))
    with pytest.raises(CorruptDocumentError, match="metadata"):
        markdown(f"---\nl0: &l0 [x]\n{levels}\n---\nbody")


def test_yaml_that_contains_itself_is_taken_as_written() -> None:
    assert markdown("---\na: &a [*a]\n---\nbody").metadata["a"] == "&a [*a]"


def test_html_keeps_inline_together_and_blocks_apart() -> None:
    document = html("<p>foo<b>bar</b> <i>baz</i></p><p>next\n  line<br>broken</p><ul><li>one<li>two</ul>tail")
    assert document.text == "foobar baz\n\nnext line\nbroken\n\none\ntwo\n\ntail"


def test_html_shows_only_what_is_visible() -> None:
    document = html(
        "<head><title>T</title><style>p{}</style></head><body><nav>menu</nav><script>x()</script><!-- c -->"
        "<p hidden>h</p><div aria-hidden=true>i</div><div role=navigation>j</div><template>t</template>"
        "<noscript>n</noscript><p>shown &amp; &lt;seen&gt;</p>"
    )
    assert document.text == "i\n\nshown & <seen>"
    assert document.metadata["title"] == "T"


def test_html_tables_and_preformatted_text() -> None:
    document = html(
        "<table><tr><th>Name<th>Age</tr><tr><td>Ada<td>36</tr><tr><td><td></tr></table><pre>if x:\n    y  z</pre>"
    )
    assert document.text == "Name | Age\nAda | 36\n\nif x:\n    y  z"


def test_html_headings_make_sections() -> None:
    document = html("<h1>Big<br><span>Title</span></h1><h2><div>Part</div></h2><p>alpha</p><h2>Two</h2>beta")
    assert sections_of(document) == [
        (("Big Title", "Part"), "Big Title\n\nPart\n\nalpha"),
        (("Big Title", "Two"), "Two\n\nbeta"),
    ]


def test_html_metadata() -> None:
    document = html(
        "<html lang='de-AT'><head><title> My\n page </title><meta name=author content=Ada>"
        "<meta property='article:published_time' content='2024-03-01T10:00:00Z'>"
        "<meta name=description content='What it says'></head><body>x</body></html>"
    )
    assert document.metadata == {
        "title": "My page", "author": "Ada", "created": "2024-03-01T10:00:00+00:00", "description": "What it says",
        "language": "de", "parser": "html",
    }  # fmt: skip


@pytest.mark.parametrize("declared", ["gb2312", "gbk"])
def test_html_encoding_is_read_as_browsers_do(declared: str) -> None:
    content = f'<meta charset="{declared}"><p>{CHINESE}喆'.encode("gb18030")
    assert parse(content, "a.htm", SETTINGS).text == f"{CHINESE}喆"


def test_html_without_visible_text_is_empty() -> None:
    with pytest.raises(EmptyDocumentError, match="reader would see"):
        html("<html><body><script>render()</script><div id=app></div></body></html>")


def test_deep_html_needs_no_deep_stack() -> None:
    assert html("<div>" * 3000 + "core").text == "core"


@given(st.lists(st.sampled_from(["# A", "## B", "text", "", "```", "---", "===", "> q", "    code", "\u2028x", "#"])))
def test_markdown_sections_cover_the_text_in_order(lines: list[str]) -> None:
    document = markdown("\n".join([*lines, "end"]))
    if document.sections:
        assert document.sections[0].start == 0 or not document.text[: document.sections[0].start].strip()
        assert document.sections[-1].end == len(document.text)
        for before, after in zip(document.sections, document.sections[1:], strict=False):
            assert before.end == after.start


@given(st.text(st.sampled_from("<>/abhpdivtr123 &;\"'=!-\n#é")))
def test_any_html_is_read_or_refused(text: str) -> None:
    try:
        document = html(f"<body>x{text}")
    except EmptyDocumentError:
        return
    assert document.text == document.text.strip()
