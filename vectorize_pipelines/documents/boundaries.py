"""Places where a text may be cut: paragraphs, sentences, lines, clauses, words, characters. Used by the chunker."""

import re
import unicodedata
from collections.abc import Iterator

#: Scripts written without spaces: a cut is allowed between two of their characters.
_UNSPACED = (
    "\u0e01-\u0edf"  # Thai, Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u2e80-\u2fdf\u3000-\u30ff\u3105-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han, kana
    "\uff00-\uff9f\U00020000-\U0003ffff"
)
#: Marks, and vowels written after their consonant: no piece begins with one.
_TRAILING = (
    "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f\u200c\u200d\u302a-\u302f"
    "\u3099\u309a\uff9e\uff9f\U000e0100-\U000e01ef\U0001f3fb-\U0001f3ff"
    "\u0e30-\u0e3a\u0e45-\u0e4e\u0eb0-\u0ebc\u0ec6-\u0ece"
    "\u0f18\u0f19\u0f35\u0f37\u0f39\u0f3e\u0f3f\u0f71-\u0f87\u0f8d-\u0fbc\u0fc6"
    "\u102b-\u103e\u1056-\u1059\u105e-\u1060\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u108f\u109a-\u109d"
    "\uaa7b-\uaa7d\u17b4-\u17d3\u17dd"
)
#: No piece begins with a closing mark or a small kana, and none ends with an opening mark or a leading vowel.
_CLOSING = "。｡．，、！？；：」』】》〉）］｝〕”’…ー々ぁぃぅぇぉっゃゅょァィゥェォッャュョ"
_LEADING = "\u0e40-\u0e44\u0ec0-\u0ec4「『【《〈（［｛〔\u200d"

UNSPACED = re.compile(f"[{_UNSPACED}]")

#: The positions inside a run without whitespace at which it may be cut.
CUT = re.compile(f"(?:(?<=[{_UNSPACED}])|(?=[{_UNSPACED}]))(?<![{_LEADING}])(?![{_CLOSING}{_TRAILING}])")

PARAGRAPH = re.compile(r"\n[^\S\n]*+\n|\f")
SENTENCE = re.compile(r"[.!?…؟۔।]++[\"'”’»)\]]*+(?=\s)|[。！？｡]++[」』”’）】》]*+")
LINE = re.compile(r"\n")
CLAUSE = re.compile(r"[,;:](?=\s)|[，、；：]")
WORD = re.compile(r"\s++")

#: Best first; a word's end is what remains where none of them is found.
PREFERRED = (PARAGRAPH, SENTENCE, LINE, CLAUSE)

_ABBREVIATED = re.compile(r"(?:^|[\s(\"'])(?:[A-Z]|Dr|Mr|Mrs|Ms|Prof|St|No|Nr|Fig|vs|cf|e\.g|i\.e|z\.B)\.$")
_LOOK_AROUND = 8

#: Longer graphemes are made to annoy, not to be read.
_GRAPHEME_CHARACTERS = 64
_ZERO_WIDTH_JOINER = "\u200d"


def ends(pattern: re.Pattern[str], text: str, start: int, end: int) -> Iterator[int]:
    """Yield the positions in [start, end] after each paragraph, sentence, … of `text` that ends there."""
    for match in pattern.finditer(text, start, min(end + 1, len(text))):
        if match.end() <= end and (pattern is not SENTENCE or _ends_a_sentence(text, match)):
            yield match.end()


def _ends_a_sentence(text: str, match: re.Match[str]) -> bool:
    """Return whether a sentence ends: not before a small letter, nor after an initial or a common abbreviation."""
    if text[match.end() : match.end() + _LOOK_AROUND].lstrip()[:1].islower():
        return False
    before = text[max(0, match.start() - _LOOK_AROUND) : match.end()]
    return text[match.start()] != "." or _ABBREVIATED.search(before) is None


def starts_a_word(text: str, position: int) -> bool:
    """Return whether a piece that begins here begins with a whole word."""
    return position == 0 or text[position - 1].isspace() or CUT.match(text, position) is not None


def cut_within(text: str, start: int, preferred: int, end: int) -> int:
    """Return a position inside (start, end) to cut at, near `preferred`: between words, or else within the only one."""
    for pattern in (WORD, CUT):
        before = [position for position in ends(pattern, text, start, preferred) if position > start]
        if before:
            return before[-1]
    for pattern in (WORD, CUT):
        after = next((position for position in ends(pattern, text, preferred, end) if position < end), None)
        if after is not None and after > start:
            return after
    return safe_cut(text, start, min(max(preferred, start + 1), end - 1))


def safe_cut(text: str, start: int, end: int) -> int:
    """Return the last position in (start, end] that divides no grapheme: no letter from its accent, no flag in two.

    `end` itself where there is none within reach.
    """
    for position in range(end, max(start, end - _GRAPHEME_CHARACTERS), -1):
        if position >= len(text) or not _same_grapheme(text, position):
            return position
    return end


def _same_grapheme(text: str, position: int) -> bool:
    """Return whether the characters before and after the position belong to one grapheme."""
    before, after = text[position - 1], text[position]
    if unicodedata.category(after)[0] == "M" or _ZERO_WIDTH_JOINER in (before, after):
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\u1160" <= after <= "\u11ff":  # skin tones; Hangul vowels and finals
        return True
    if not (_is_regional(before) and _is_regional(after)):
        return False
    # Two regional indicators make a flag; they pair up from the beginning of their run.
    run = 1
    while run < _GRAPHEME_CHARACTERS and position - run > 0 and _is_regional(text[position - run - 1]):
        run += 1
    return run % 2 == 1


def _is_regional(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
