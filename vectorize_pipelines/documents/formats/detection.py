"""The encoding of text of which nothing says it: chardet's ranking, corrected by what real text never has.

Called by `text`. How often it is right is measured: `python -m benchmarks.encodings` makes the table in
docs/documents.md, and `tests/documents/test_detection.py` holds this module to it.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from vectorize_pipelines.core.encodings import decode_as
from vectorize_pipelines.documents.errors import damage_reported

#: What text without a mark is found in: chardet's name, the name to decode with, and how usual it is, which decides
#: between those that fit alike. Of those that read a sample alike the first counts: windows-1252 goes on to read what
#: iso-8859-15 has no characters for.
_USUAL, _RARER, _RARE = 1.0, 0.999, 0.998
CANDIDATES = {
    "cp1252": ("windows-1252", _USUAL),
    "cp1250": ("windows-1250", _USUAL),
    "cp1251": ("windows-1251", _USUAL),
    "cp1253": ("windows-1253", _USUAL),
    "cp1254": ("windows-1254", _USUAL),
    "cp1255": ("windows-1255", _USUAL),
    "cp1256": ("windows-1256", _USUAL),
    "cp1257": ("windows-1257", _USUAL),
    "cp1258": ("windows-1258", _USUAL),
    "cp874": ("windows-874", _USUAL),
    "big5hkscs": ("big5", _USUAL),
    "cp932": ("shift_jis", _USUAL),
    "cp949": ("euc-kr", _USUAL),
    "euc_jis_2004": ("euc-jp", _USUAL),
    "gb18030": ("gb18030", _USUAL),
    "koi8-r": ("koi8-r", _USUAL),
    "koi8-u": ("koi8-u", _USUAL),
    "iso8859-2": ("iso-8859-2", _RARER),
    "iso8859-5": ("iso-8859-5", _RARER),
    "iso8859-6": ("iso-8859-6", _RARER),
    "iso8859-7": ("iso-8859-7", _RARER),
    "iso8859-15": ("iso-8859-15", _RARER),
    "cp866": ("ibm866", _RARER),
    "cp850": ("cp850", _RARE),
    "cp437": ("cp437", _RARE),
    "cp852": ("cp852", _RARE),
    "cp857": ("cp857", _RARE),
    "mac-roman": ("macintosh", _RARE),
    "mac-cyrillic": ("x-mac-cyrillic", _RARE),
}
_PREFERENCE = {encoding: place for place, (encoding, _) in enumerate(CANDIDATES.values())}
#: What chardet answers where nothing fits; not a candidate, since text in ASCII is not asked for.
NO_MATCH = "ascii"
#: Of each candidate, by what it makes of the bytes.
ANOMALY_FACTOR, MAX_ANOMALIES = 0.5, 6
MAX_SCORED_CHARACTERS = 4 * 1024
#: In bytes; what a sample's end may be short of.
LONGEST_CHARACTER = 4
#: A letter or two of another script than Latin is no word.
FEW_LETTERS = 3
#: Text in capitals is scored in small letters, which chardet's models know.
CAPITALS_SHARE, CAPITALS_FACTOR = 0.6, 0.9

#: Below these a guess is too often wrong, by measurement: chardet's score, and the logarithm of how many times that of
#: the next candidate it is, for several bytes beyond ASCII, for one alone, and, times the square root of their number,
#: for text in capitals.
MIN_SCORE = 0.03
MIN_LEAD, MIN_LEAD_OF_ONE_BYTE, MIN_LEAD_IN_CAPITALS = 0.004, 0.15, 1.5
#: The lead, times the square root of the number of bytes, from which on a guess is sure.
SURE_LEAD = 6.0

#: Of text that is ASCII but for symbols such as those of copyright, degrees and sections, in windows-1252 and others.
SYMBOLS_CONFIDENCE = 0.6

_LONE_SYMBOL = re.compile(
    r"(?<![^\W\d_])(?<![\x80-\uffff])"
    r"(?:[\xa0\xa3\xa7\xa9\xab\xb1-\xb3\xb7\xbb-\xbe\u20ac](?![^\W\d_]|[\x80-\uffff])|\xb0(?=\W|[CF]\b)|\xb5(?=[ACFVWglms]\b))"
    r"|(?<=[A-Za-z0-9])\xae(?!\w)"
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_NO_TEXT = re.compile(r"[\x80-\x9f\ufffd\ue000-\uf8ff]")
#: Between two letters there is no symbol: no box, no currency, no fraction. Accents and marks of scripts there are.
_SYMBOL_IN_WORD = re.compile(
    r"(?<=[^\W\d_])[^\w\s\x00-\x7f\xad\xb7\u0300-\u036f\u0591-\u05c7\u060c\u061b\u061f\u064b-\u0655\u0e31\u0e34-\u0e3a"
    r"\u0e47-\u0e4e\u2010-\u2015\u2018\u2019\u2026\u3000-\u303f\uff00-\uffef](?=[^\W\d_])"
)
#: Nor does a word in small letters begin with one.
_SYMBOL_BEFORE_WORD = re.compile(
    r"(?<!\w)[\u2013\u2014\u201a\u2020\u2021\u2030\u20ac\u2122\xa7\xa9\xae\xb0\xb6]([^\W\d_])"
)
_SCRIPTS = (
    (0x0000, 0x0250, "Latin"), (0x1E00, 0x1F00, "Latin"), (0x0370, 0x0400, "Greek"), (0x1F00, 0x2000, "Greek"),
    (0x0400, 0x0530, "Cyrillic"), (0x0590, 0x0600, "Hebrew"), (0x0600, 0x0780, "Arabic"), (0xFB50, 0xFE00, "Arabic"),
    (0x0E00, 0x0E80, "Thai"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Guess:
    """The likeliest encoding, under the name to decode with.

    confidence  0 to 1; 0.5 is as sure as it has to be
    rival       the next likeliest that reads the bytes otherwise
    """

    encoding: str
    confidence: float
    rival: str | None

    @property
    def is_certain_enough(self) -> bool:
        """Whether guesses like this one are right often enough to take the text so."""
        return self.confidence >= 0.5

    @property
    def doubt(self) -> str:
        """What it may be, for an error."""
        return f"likeliest {self.encoding}{f' or {self.rival}' if self.rival else ''}"

    @property
    def reason(self) -> str:
        """What was guessed from, for a notice."""
        return f"its letters (confidence {self.confidence:.1f})"


class _Reading(NamedTuple):
    encoding: str
    score: float
    in_capitals: bool


def detect(sample: bytes) -> Guess | None:
    """Return the likeliest encoding of the text, of which a few thousand bytes are enough; None where none fits.

    The sample may end within a character.
    """
    if _has_only_symbols(sample):
        return Guess("windows-1252", SYMBOLS_CONFIDENCE, None)
    readings = sorted(_readings(sample), key=lambda reading: -reading.score)
    if not readings:
        return None
    best, rival = readings[0], readings[1] if len(readings) > 1 else None
    telling = len(sample) - len(sample.translate(None, _BEYOND_ASCII))
    lead = math.log(best.score / rival.score) if best.score and rival and rival.score else math.inf
    return Guess(best.encoding, _confidence(best, lead, telling), rival.encoding if rival else None)


def _has_only_symbols(sample: bytes) -> bool:
    """Return whether the text is ASCII but for symbols, which stand alone as letters of other encodings do not."""
    text = _decoded(sample, "windows-1252")
    return text is not None and _LONE_SYMBOL.sub("", text).isascii()


def _confidence(best: _Reading, lead: float, telling: int) -> float:
    """Return how sure the best reading is: 0.5 with the lead that it needs, up to 1."""
    needed = MIN_LEAD if telling > 1 else MIN_LEAD_OF_ONE_BYTE
    if best.in_capitals:
        needed = MIN_LEAD_IN_CAPITALS / math.sqrt(telling)
    if best.score < MIN_SCORE:
        return 0.0
    if lead < needed:
        return 0.49 * lead / needed
    return min(1.0, 0.5 + 0.5 * (lead - needed) * math.sqrt(telling) / SURE_LEAD)


def _readings(sample: bytes) -> list[_Reading]:
    """Return what the candidates make of the bytes, those that read the same as one."""
    text_alone = _MARKUP.sub(b" ", sample)
    scored = sample if text_alone.isascii() else text_alone
    likely: list[tuple[float, str, _Reading]] = []
    for name, score in _scores(scored, list(CANDIDATES)).items():
        encoding, weight = CANDIDATES[name]
        if (text := _decoded(sample, encoding)) is None:
            continue
        if in_capitals := _is_in_capitals(text):
            score = max(score, CAPITALS_FACTOR * _score_of_small_letters(text, name, encoding))
        likely.append((score * weight, text, _Reading(encoding, 0.0, in_capitals)))
    found: dict[str, _Reading] = {}
    for score, text, reading in sorted(likely, key=lambda each: -each[0]):
        if (same := found.get(text)) is not None:
            if _PREFERENCE[reading.encoding] < _PREFERENCE[same.encoding]:
                found[text] = same._replace(encoding=reading.encoding)
            continue
        if len(found) > 1 and score < sorted(other.score for other in found.values())[-2]:
            break  # whatever comes is worse than the best two
        factor: float = ANOMALY_FACTOR ** min(_anomalies(text), MAX_ANOMALIES)
        found[text] = reading._replace(score=score * factor)
    return list(found.values())


def _scores(sample: bytes, names: list[str]) -> dict[str, float]:
    import chardet

    with damage_reported("text"):
        ranking = chardet.detect_all(
            sample,
            ignore_threshold=True,
            compat_names=False,
            include_encodings=[*names, NO_MATCH],
            no_match_encoding=NO_MATCH,
        )
    return {each["encoding"]: each["confidence"] for each in ranking if each["encoding"] in CANDIDATES}


def _score_of_small_letters(text: str, name: str, encoding: str) -> float:
    small = _encoded(text.lower(), encoding)
    return _scores(small, [name]).get(name, 0.0) if small and not small.isascii() else 0.0


def _decoded(sample: bytes, encoding: str) -> str | None:
    try:
        return decode_as(sample, encoding)[:MAX_SCORED_CHARACTERS]
    except UnicodeDecodeError as error:
        cut = error.start if error.start >= len(sample) - LONGEST_CHARACTER else 0
    return decode_as(sample[:cut], encoding)[:MAX_SCORED_CHARACTERS] if cut else None


def _encoded(text: str, encoding: str) -> bytes:
    import webencodings

    found = webencodings.lookup(encoding)
    try:
        encoded: bytes = found.codec_info.encode(text, "ignore")[0] if found else text.encode(encoding, "ignore")
    except UnicodeError:
        return b""
    return encoded


def _is_in_capitals(text: str) -> bool:
    upper = sum(map(str.isupper, text))
    return upper > CAPITALS_SHARE * (upper + sum(map(str.islower, text)))


def _anomalies(text: str) -> int:
    """Return how much in the text is as nobody writes: mixed scripts, capitals or symbols within words."""
    count = 3 if _NO_TEXT.search(text) else 0
    count += 3 if 0 < sum(map(_is_of_other_script, text)) < FEW_LETTERS else 0
    for match in _WORD.finditer(text):
        word = match[0]
        if word.isascii():
            continue
        scripts = {_script(character) for character in word}
        count += 2 * (len(scripts) > 1 and "Latin" in scripts and scripts != {"Latin", None})
        count += sum(
            before.islower() and after.isupper() and not (before + after).isascii() for before, after in pairwise(word)
        )
        if count >= MAX_ANOMALIES:
            return count
    glued = sum(map(str.islower, _SYMBOL_BEFORE_WORD.findall(text)))
    return count + glued + len(_SYMBOL_IN_WORD.findall(text))


def _is_of_other_script(character: str) -> bool:
    return character > "\u02af" and character.isalpha() and not "\u1e00" <= character < "\u1f00"


def _script(character: str) -> str | None:
    code = ord(character)
    return next((name for start, end, name in _SCRIPTS if start <= code < end), None)


_BEYOND_ASCII = bytes(range(0x80, 0x100))
#: Tags, which may declare an encoding that is not this one; in no encoding half a character.
_MARKUP = re.compile(rb"<[^<>]{0,4096}>")
