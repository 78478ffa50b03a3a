"""Which encoding text is read in: what says it, by the encoding standard, and what a setting states."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.documents.builders import SETTINGS, settings
from vectorize_pipelines.core.encodings import decode_as, encoding_name, standard_name
from vectorize_pipelines.core.notices import NoticeKind
from vectorize_pipelines.documents.errors import EmptyDocumentError, NotTextError, UnknownEncodingError
from vectorize_pipelines.documents.parsing import parse
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.settings import load_settings

CASES = Path(__file__).parent / "cases"
TURKISH = "Balıkçı sabah erkenden denize açıldı. Ağları boş çıktı, akşam iskeleye döndü."
LABELS = {
    "cp1252": "windows-1252", "cp1254": "windows-1254", "cp866": "ibm866", "iso2022_jp": "iso-2022-jp",
    "mac_roman": "macintosh",
}  # fmt: skip
RUSSIAN = "Маяк на северном мысу виден за двадцать миль в ясную погоду."


def read(content: bytes, name: str = "a.html", media_type: str | None = None, **changes: Any) -> ParsedDocument:
    return parse(content, name, settings(**changes), media_type)


def page(label: str, text: str, encoding: str) -> bytes:
    return (
        f'<html><head><meta charset="{label}"></head><body><p>'.encode() + text.encode(encoding) + b"</p></body></html>"
    )


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("bom-cyrillic", RUSSIAN),
        ("bom-latin", "Der Müller mahlt für größere Höfe."),
        ("single-quoted", TURKISH),
        ("xml-decl", TURKISH),
        ("labels/iso-8859-9", "“Şehir” dün akşam çok soğuktu – ığdır’a kar yağdı…"),
        ("labels/koi8", "Маяк на северном мысу виден за двадцать миль в ясную погоду."),
        ("labels/ksc5601", "똠방각하는 오늘 아침 펲시를 마셨다."),
        ("labels/shift-jis", "①番線から東京行きの電車が出ます。髙橋さんも乗ります。"),
        ("labels/windows-874", "“เรือ” ออกจากท่าเวลาเช้า…"),
        ("labels/x-sjis", "①番線から東京行きの電車が出ます。髙橋さんも乗ります。"),
    ],
)
def test_pages_are_read_in_the_encoding_that_browsers_take(file: str, text: str) -> None:
    document = read((CASES / "html" / f"{file}.html").read_bytes())
    assert document.text == text
    assert document.notices == ()


def test_big5_has_the_characters_of_hong_kong() -> None:
    assert "\ufffd" not in read((CASES / "html/labels/big5-hkscs.html").read_bytes()).text


@pytest.mark.parametrize(
    ("label", "content", "text"),
    [
        ("iso-8859-1", b"\x80 \x93x\x94 \x81", "€ “x” \x81"),
        ("latin1", b"\x99", "™"),
        ("us-ascii", b"\x8a", "Š"),
        ("gb2312", "喆囍".encode("gbk"), "喆囍"),
        ("gbk", b"\x80", "€"),
        ("windows-1255", b"\xca", "\u05ba"),
        ("windows-1253", b"\xa2\x81", "Ά\x81"),
        ("koi8-u", b"\xae\xbe", "ўЎ"),
        ("x-mac-cyrillic", b"\xff", "€"),
        ("euc-jp", b"\xad\xa1\xa1\xc1", "①～"),
        ("iso-2022-jp", b"\x1b$B-!!A\x1b(B.", "①～."),
        ("ks_c_5601-1987", "똠".encode("cp949"), "똠"),
        ("tis-620", b"\x80", "€"),
        ("x-cp1251", "ж".encode("cp1251"), "ж"),
        ("unicode-1-1-utf-8", "ж".encode(), "ж"),
    ],
)
def test_labels_mean_what_they_mean_on_the_web(label: str, content: bytes, text: str) -> None:
    name = standard_name(label)
    assert name is not None
    assert decode_as(content, name) == text


def test_what_no_encoding_has_is_refused_or_replaced() -> None:
    with pytest.raises(UnicodeDecodeError):
        decode_as(b"a\xff", "windows-874")
    assert decode_as(b"a\xffb", "windows-874", "replace") == "a\ufffdb"
    assert decode_as(b"\xa4\xa2\x80\xa4\xa4", "euc-jp", "replace") == "あ\ufffdい"


@pytest.mark.parametrize("label", ["", "utf-9", "base64", "rot13", "punycode", "\ud800", "a\0b", "hex"])
def test_what_is_no_encoding_of_files_has_no_name(label: str) -> None:
    assert encoding_name(label) is None


def test_utf16_in_a_declaration_that_is_ascii_is_utf8() -> None:
    assert read(page("utf-16", "größer", "utf-8")).text == "größer"


def test_a_declaration_in_a_comment_is_none() -> None:
    content = b'<!-- <meta charset="windows-1251"> --><meta charset="windows-1252"><p>caf\xe9'
    assert read(content).text == "café"


@pytest.mark.parametrize(
    "meta",
    [
        "<meta charset=windows-1254>",
        "<META CHARSET = 'Windows-1254' >",
        "<meta content='text/html;charset=\"windows-1254\"' http-equiv=content-type>",
        "<meta name=x><meta http-equiv='Content-Type' content='text/html; charset = iso-8859-9'>",
    ],
)
@pytest.mark.parametrize("filler", [0, 3000])
def test_declarations_count_in_every_form_and_late_ones_too(meta: str, filler: int) -> None:
    content = f"<html><head><!--{'x' * filler}-->{meta}</head><body><p>".encode() + TURKISH.encode("cp1254")
    assert read(content).text == TURKISH


def test_the_carrier_counts_before_the_page() -> None:
    content = page("windows-1252", RUSSIAN, "cp1251")
    assert read(content, media_type="text/html; charset=Windows-1251").text == RUSSIAN
    assert read(content, media_type='text/html;charset="cp1251"').text == RUSSIAN
    inline = page("windows-1251", RUSSIAN, "utf-8")
    document = read(inline, media_type="text/html; charset=utf-8")
    assert (document.text, document.notices) == (RUSSIAN, ())


def test_a_mark_counts_before_the_carrier_and_the_setting() -> None:
    content = b"\xef\xbb\xbf" + RUSSIAN.encode()
    assert read(content, "a.txt", "text/plain; charset=koi8-r", encodings={"*": "windows-1252"}).text == RUSSIAN


def test_a_page_that_declares_another_encoding_than_its_bytes_is_read_as_browsers_do_and_said() -> None:
    document = read(page("iso-8859-1", "größer", "utf-8"))
    assert document.text == "grÃ¶ÃŸer"
    assert "valid UTF-8" in document.notices[0].what
    assert read(page("utf-8", "C'est la fête", "cp1252")).text == "C'est la fête"


def test_encodings_that_browsers_refuse_are_refused() -> None:
    with pytest.raises(UnknownEncodingError, match=r"refuse to read.*documents\.encodings"):
        read(b'<meta charset="hz-gb-2312"><p>~{VPND~}')


def test_damage_is_said() -> None:
    document = read("größer als für möglich gehalten: öäüß".encode() * 9 + b"\xff", "a.txt")
    assert document.text.endswith("\ufffd")
    assert (document.notices[0].kind, document.notices[0].what[:22]) == (NoticeKind.ASSUMED, "a character is damaged")


@pytest.mark.parametrize("encoding", ["windows-1254", "ISO-8859-9", "latin5"])
def test_a_stated_encoding_is_taken_for_the_files_of_its_pattern(encoding: str) -> None:
    content = TURKISH.encode("cp1254")
    for name in ("/data/old/a.txt", "s3://bucket/old/a.txt", "old/a.txt"):
        document = read(content, name, encodings={"*.md": "koi8-r", "old/*.txt": encoding})
        assert (document.text, document.notices) == (TURKISH, ())


def test_the_last_pattern_that_matches_counts() -> None:
    encodings = {"*.txt": "koi8-r", "/data/**": "cp866", "b.txt": "utf-8"}
    content = RUSSIAN.encode("cp866")
    assert read(content, "/data/a.txt", encodings=encodings).text == RUSSIAN
    with pytest.raises(NotTextError, match=r"is not utf-8, which documents.encodings \(b.txt\) says"):
        read(content, "/data/b.txt", encodings=encodings)


def test_a_stated_encoding_applies_to_every_format_of_text() -> None:
    text = "text,n\nПроверка связи,1\n"
    encodings = {"*": "cp866"}
    assert read(text.encode("cp866"), "a.csv", encodings=encodings).text == "Проверка связи"
    assert read("# Проверка\n".encode("cp866"), "a.md", encodings=encodings).text == "# Проверка\n"
    assert read("<p>Проверка".encode("cp866"), "a.html", encodings=encodings).text == "Проверка"


def test_stated_encodings_come_from_a_variable_and_wrong_ones_are_refused() -> None:
    stated = load_settings({"VECTORIZE_DOCUMENTS__ENCODINGS": json.dumps({"*.txt": "windows-1254"})}).documents
    assert stated.encodings == {"*.txt": "windows-1254"}
    for encodings in ({"*": "klingon"}, {"*": "hz-gb-2312"}, {"!a": "utf-8"}):
        with pytest.raises(ValidationError):
            settings(encodings=encodings)


@pytest.mark.parametrize(
    ("file", "encoding"),
    [
        ("cp1252-french-short", "cp1252"),
        ("cp1254-turkish", "cp1254"),
        ("cp866-russian", "cp866"),
        ("iso-2022-jp", "iso2022_jp"),
        ("mac-roman-french", "mac_roman"),
    ],
)
def test_text_in_a_legacy_encoding_is_right_and_said_or_refused(file: str, encoding: str) -> None:
    content = (CASES / "text" / f"{file}.txt").read_bytes()
    text = content.decode(encoding)
    label = LABELS[encoding]
    document = read(content, "notes/a.txt")
    assert document.text == text
    assert document.notices[0].kind is NoticeKind.ASSUMED
    assert f"its encoding was taken for {label}, by its" in document.notices[0].what
    assert read(content, "notes/a.txt", encodings={"a.txt": label}).text == text


def test_text_whose_encoding_its_bytes_do_not_tell_is_refused_with_the_setting() -> None:
    content = "東京都千代田区".encode("euc-jp")
    with pytest.raises(UnknownEncodingError, match=r'VECTORIZE_DOCUMENTS__ENCODINGS=\{"\*.txt": "'):
        read(content, "notes/a.txt")
    assert read(content, "notes/a.txt", encodings={"*.txt": "x-euc-jp"}).text == "東京都千代田区"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Рыбак вышел в море рано утром, ветер был сильный.\n", "utf-16-le"),
        ("漁師は早朝に海へ出た。\n波が高かった。\n", "utf-16-be"),
        ("渔夫清晨出海捕鱼，风很大。", "hz"),
        ("어부는 이른 아침 바다로 나갔다.", "iso2022_kr"),
        ("Müller, Jürgen; Weiß, Käthe\n", "cp1252"),
        ("Price: 40 € per night, 35 € in winter.\n", "cp1252"),
        ("Copyright © 2020 ACME® Ltd, section § 5: 20°C ± 1, £40, 3 µm.\n", "cp1252"),
        ("He said “hello” – and it’s fine.\n", "cp1252"),
    ],
)
def test_other_encodings_are_told_by_their_bytes_and_said(text: str, encoding: str) -> None:
    document = read(text.encode(encoding), "a.txt")
    assert document.text == text
    assert "was taken for" in document.notices[0].what


@pytest.mark.parametrize(
    "text", ["see ~{abcd~} and ~{x~}", "\x1b[31mred\x1b[0m", "a\0b\0" + "word " * 99, "C++ +abc-", "ab" * 50 + "\0c"]
)
def test_ascii_stays_ascii(text: str) -> None:
    document = read(text.encode(), "a.txt")
    assert (document.text, document.notices) == (text.replace("\0", ""), ())


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_what_is_certain_has_no_notice(encoding: str) -> None:
    text = "The ferry leaves at nine." + ("" if encoding == "ascii" else " It is 40 € – für alle.")
    document = read(text.encode(encoding), "a.txt")
    assert (document.text, document.notices) == (text, ())


@pytest.mark.parametrize("content", [(CASES / "text/zero-width.txt").read_bytes(), "\ufe0f\u2800\u3164 \xad".encode()])
def test_what_nobody_sees_is_empty(content: bytes) -> None:
    with pytest.raises(EmptyDocumentError):
        read(content, "a.txt")


@hypothesis_settings(max_examples=60)
@given(
    st.sampled_from(["a.txt", "a.html", "a.md"]),
    st.binary(max_size=60),
    st.sampled_from([None, "text/html; charset=euc-jp", "text/html; charset=big5", "text/plain; charset=replacement"]),
)
def test_any_bytes_are_read_or_refused(name: str, content: bytes, media_type: str | None) -> None:
    try:
        document = parse(content + "ж".encode("cp1251"), name, SETTINGS, media_type)
    except ItemError:
        return
    document.text.encode()
