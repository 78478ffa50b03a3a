"""Notebooks, JSON, XML, YAML, source code and subtitles."""

import pytest

from tests.documents import packages
from tests.documents.builders import SETTINGS, settings
from vectorize_pipelines.documents import ParsedDocument, parse


def read(content: str | bytes, name: str) -> ParsedDocument:
    return parse(content.encode() if isinstance(content, str) else content, name, SETTINGS)


def paths(document: ParsedDocument) -> list[tuple[str, ...]]:
    return [section.path for section in document.sections]


def test_a_notebook_has_its_cells_with_what_they_printed() -> None:
    content = packages.notebook(
        ("markdown", "# Tides\nHigh at noon."), ("code", "print(1)"), ("markdown", "## Low\nAt six."),
        kernelspec={"language": "python"},
    )  # fmt: skip
    document = read(content, "a.ipynb")
    assert document.text == "# Tides\nHigh at noon.\n\nprint(1)\n\nprinted\n\n## Low\nAt six."
    assert paths(document) == [("Tides",), ("Tides", "Low")]
    assert document.metadata["programming_language"] == "python"


def test_what_was_assumed_in_reading_a_notebook_is_said() -> None:
    content = packages.notebook(("markdown", "Größe der Häfen: größer als früher, übrigens."))
    text = content.decode().encode().decode("unicode-escape").replace("\n", "\\n").encode("cp1252")
    document = read(text, "a.ipynb")
    assert "Größe" in document.text
    assert "windows-1252" in document.notices[0].what


def test_json_is_read_with_its_names_and_its_numbers_as_they_are_written() -> None:
    document = read(
        '{"zip": "02134", "price": 1.10, "zip": null, "piers": [{"name": "N", "open": true}, ["a", []]]}', "a.json"
    )
    assert document.text == "zip: 02134\nprice: 1.10\nzip:\n\npiers\n\n- name: N\n  open: true\n- - a\n  -"
    assert paths(document) == [(), ("piers",)]


def test_a_plain_value_behind_a_list_is_no_part_of_it() -> None:
    document = read('{"tags": ["a", "b"], "name": "North", "owner": {"name": "Ada"}}', "a.json")
    assert document.text == "name: North\n\ntags\n\n- a\n- b\n\nowner\n\nname: Ada"
    assert paths(document) == [(), ("tags",), ("owner",)]


def test_a_list_of_objects_is_one_text() -> None:
    document = read('[{"a": 1}, {"a": 2}]', "a.json")
    assert (document.text, document.rows) == ("a: 1\n\na: 2", ())


def test_what_is_no_json_is_plain_text_and_said_so() -> None:
    document = read('// comment\n{"a": 1,}', "tsconfig.json")
    assert document.text == '// comment\n{"a": 1,}'
    assert document.notices[0].kind == "assumed"


@pytest.mark.parametrize("depth", [150, 5_000, 100_000])
def test_deep_json_is_read_or_refused(depth: int) -> None:
    from vectorize_pipelines.errors import ItemError

    try:
        assert read("[" * depth + "1" + "]" * depth, "a.json").text
    except ItemError as error:
        assert depth > 200, error  # noqa: PT017 (some depths are read)


def test_xml_is_read_with_its_names_and_mixed_content_as_a_paragraph() -> None:
    content = (
        '<?xml version="1.0" encoding="iso-8859-1"?><!DOCTYPE h [<!ENTITY n "North">]><h xmlns:x="u"><x:pier id="1">'
        "<fee>40</fee><note>The <b>north</b> one</note></x:pier><name>&n; é</name></h>"
    )
    assert read(content.encode("latin-1"), "a.xml").text == (
        "h:\n  pier (id=1):\n    fee: 40\n    note: The north one\n  name: North é"
    )


@pytest.mark.parametrize(
    ("media_type", "encodings", "declared"),
    [
        ("text/xml; charset=windows-1251", {}, ""),
        (None, {"*.xml": "windows-1251"}, '<?xml version="1.0"?>'),
        (None, {}, '<?xml version="1.0" encoding="windows-1251"?>'),
    ],
)
def test_the_encoding_of_xml_is_whatever_says_it(
    media_type: str | None, encodings: dict[str, str], declared: str
) -> None:
    content = f"{declared}<r><pier>Северный</pier></r>".encode("cp1251")
    document = parse(content, "a.xml", settings(encodings=encodings), media_type)
    assert (document.text, document.notices) == ("r:\n  pier: Северный", ())


def test_xml_in_utf8_that_declares_utf16_is_read() -> None:
    assert read('<?xml version="1.0" encoding="utf-16"?><r>é</r>', "a.xml").text == "r: é"


def test_yaml_stands_as_it_is() -> None:
    content = "# comment\nzip: 02134\nopen: NO\n"
    assert read(content, "a.yml").text.strip() == content.strip()


CODE = {
    "a.py": (
        "import os\n\n@wraps\nclass Pier:\n    def moor(self):\n        if x:\n            y\n\ndef fee(): return 1\n",
        [(), ("Pier",), ("Pier", "moor"), ("fee",)],
    ),
    "a.js": (
        "export class Pier {\n  moor(a) {\n    if (a) {\n    }\n  }\n}\nconst fee = (a) => {\n  return 1\n}\n",
        [("Pier",), ("Pier", "moor"), ("fee",)],
    ),
    "a.java": (
        "package x;\n\n// The pier.\npublic class Pier {\n    public int fee(int a) {\n        f(a);\n    }\n}\n",
        [(), ("Pier",), ("Pier", "fee")],
    ),
    "a.go": (
        "package x\n\ntype Pier struct {\n\tn int\n}\n\nfunc (p *Pier) Fee() int {\n\treturn 1\n}\n",
        [(), ("Pier",), ("Fee",)],
    ),
    "a.rs": (
        "struct Pier { n: i32 }\n\nimpl Pier {\n    pub fn fee(&self) -> i32 {\n        1\n    }\n}\n",
        [("Pier",), ("Pier",), ("Pier", "fee")],
    ),
    "a.c": (
        "#include <x.h>\n\n/* Fee. */\nstatic int fee(int a)\n{\n    if (a) return call(a);\n    return 0;\n}\n",
        [(), ("fee",)],
    ),
    "a.sql": (
        "create table if not exists piers (n int);\n\nCREATE OR REPLACE VIEW fees AS select 1;\n",
        [("piers",), ("fees",)],
    ),
    "a.sh": ("set -e\nmoor() {\n  echo 1\n}\nfunction fee {\n  echo 2\n}\n", [(), ("moor",), ("fee",)]),
    "a.rb": ("class Pier\n  def fee\n    1\n  end\nend\n", [("Pier", "fee")]),
    "a.php": (
        "<?php\nclass Pier {\n    public function fee($a) {\n        return 1;\n    }\n}\n",
        [(), ("Pier",), ("Pier", "fee")],
    ),
}


@pytest.mark.parametrize("name", CODE)
def test_code_is_cut_at_its_definitions(name: str) -> None:
    content, wanted = CODE[name]
    document = read(content, name)
    assert document.text == content
    assert paths(document) == wanted


def test_what_is_said_above_a_definition_belongs_to_it() -> None:
    document = read(CODE["a.java"][0], "a.java")
    section = document.sections[1]
    assert document.text[section.start : section.end].startswith("// The pier.\npublic class Pier")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "a.srt",
            "1\n00:00:01,000 --> 00:00:02,000\n<i>The north\npier</i>\n\n2\n01:02:03,500 --> 01:02:04,000\nis closed\n",
        ),
        (
            "a.vtt",
            "WEBVTT\n\n00:01.000 --> 00:02.000\n<v Ada>The north\npier\n\n01:02:03.500 --> 01:02:04.000\nis closed\n",
        ),
    ],
)
def test_subtitles_are_lines_behind_their_times(name: str, content: str) -> None:
    assert read(content, name).text == "00:00:01 The north pier\n01:02:03 is closed"


def test_what_a_webvtt_writes_as_html_is_read() -> None:
    assert read("WEBVTT\n\n00:01.000 --> 00:02.000\nFish &amp; chips\n", "a.vtt").text == "00:00:01 Fish & chips"


@pytest.mark.parametrize("mark", ["", "\ufeff", "\n"])
def test_xml_has_the_encoding_that_its_carrier_states_whatever_it_declares(mark: str) -> None:
    page = f'{mark}<?xml version="1.0" encoding="windows-1251"?><pier><name>Größe</name></pier>'
    document = parse(page.encode(), "document.xml", SETTINGS, "text/xml; charset=utf-8")
    assert document.text == "pier:\n  name: Größe"
    as_declared = parse(page.replace("Größe", "Маяк").strip("\ufeff\n").encode("cp1251"), "a.xml", SETTINGS)
    assert as_declared.text == "pier:\n  name: Маяк"
