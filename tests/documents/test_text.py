"""Plain text: encodings, damage, and what is no text."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.documents.builders import CHINESE, ENGLISH, SETTINGS
from vectorize_pipelines.documents.errors import EmptyDocumentError, NotTextError
from vectorize_pipelines.documents.formats.values import clean_text
from vectorize_pipelines.documents.parsing import parse

SAMPLES = {
    "gb18030": CHINESE,
    "big5": "向量資料庫是一種專門用於儲存和檢索高維向量的資料庫系統。",
    "shift_jis": "これは日本語の文章です。ベクトルデータベースについて説明します。",
    "euc_kr": "벡터 데이터베이스는 고차원 벡터를 저장하고 검색하는 시스템입니다.",
    "cp1251": "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "cp1252": "Le café était fermé à cause de la grève. Où êtes-vous allé?",
}


def text_of(content: bytes) -> str:
    return parse(content, "a.txt", SETTINGS).text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_unicode_encodings(encoding: str) -> None:
    text = ENGLISH if encoding.endswith("e") else CHINESE + ENGLISH
    assert text_of(text.encode(encoding)) == text


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE])
def test_big_endian_marks(mark: bytes) -> None:
    encoding = "utf-16-be" if mark == codecs.BOM_UTF16_BE else "utf-32-be"
    assert text_of(mark + CHINESE.encode(encoding)) == CHINESE


@pytest.mark.parametrize("encoding", SAMPLES)
@pytest.mark.parametrize("repeats", [1, 2000])
def test_legacy_encodings(encoding: str, repeats: int) -> None:
    text = (SAMPLES[encoding] + "\n") * repeats
    assert text_of(text.encode(encoding)) == text


def test_utf8_with_a_damaged_byte_stays_utf8() -> None:
    assert text_of(CHINESE.encode() + b"\xff" + ENGLISH.encode()) == f"{CHINESE}\ufffd{ENGLISH}"


def test_line_ends_are_unified_and_nul_removed() -> None:
    assert text_of(b"one\r\ntwo\rthree\x00" + b"." * 200) == "one\ntwo\nthree" + "." * 200


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (bytes(range(256)) * 20, "binary data"),
        (b"\x00" * 50 + b"\x93\x10\xfe" * 30, "binary data"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 30, "a PNG image"),
        (b"\x7fELF" + b"\x00" * 30, "a program"),
        (b"\x1f\x8b\x08" + b"\x00" * 30, "gzip"),
        (codecs.BOM_UTF16_LE + b"\x00\xd8\x00", "binary data"),
    ],
)
def test_binary_content_is_refused_by_what_it_is(content: bytes, kind: str) -> None:
    with pytest.raises(NotTextError, match=kind):
        text_of(content)


@pytest.mark.parametrize("content", [b"", b" \n\t ", codecs.BOM_UTF8, b"\xe3\x80\x80"])
def test_nothing_to_embed_is_an_error(content: bytes) -> None:
    with pytest.raises(EmptyDocumentError):
        text_of(content)


@given(st.text(st.characters(categories=["Cs", "Lu", "So", "Cc"])))
def test_clean_text_can_be_encoded(text: str) -> None:
    cleaned = clean_text(text)
    cleaned.encode()
    assert "\0" not in cleaned
    assert "\r" not in cleaned


def test_surrogate_pairs_become_their_character() -> None:
    assert clean_text("a\ud83d\ude00b\ud83d") == "a😀b\ufffd"


def test_language_is_told_or_left_out() -> None:
    assert parse(ENGLISH.encode(), "a.txt", SETTINGS).metadata == {"parser": "text", "language": "en"}
    assert parse(CHINESE.encode(), "a.txt", SETTINGS).metadata["language"] == "zh"
    assert "language" not in parse(b"x = 3", "a.txt", SETTINGS).metadata
