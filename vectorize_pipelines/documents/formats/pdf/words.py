"""Words as they were before they were set: hyphens at the ends of lines, ligatures, hyphens that are not shown."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain

from vectorize_pipelines.documents.formats.language import language_of

#: The languages of which frequencies of words are at hand.
LANGUAGES = ("de", "en", "es", "fr", "it", "nl", "pt", "ru")
#: Their compounds are written as one word, and divided between its parts.
_COMPOUNDING = ("da", "de", "fi", "hu", "is", "nb", "nl", "nn", "no", "sv")
#: A word that is so much rarer than the rarer of its halves is a misspelling of the two with a hyphen.
_RARER = 100

_LIGATURES = {
    ligature: unicodedata.normalize("NFKC", ligature) for ligature in "\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06"
}
_SOFT_HYPHEN = "\u00ad"
#: A hyphen at the end of a line, and what it looks like.
_BREAK = re.compile(r"([-\u2010\u00ad])\n(?=\w)")
_BREAKS = ("-\n", "\u2010\n", _SOFT_HYPHEN)
_LAST_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?\Z")
_FIRST_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
#: Characters of a page before and behind a hyphen that are looked at.
_REACH = 64
_IDEOGRAPH = "[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]"
_FROM_TOP_TO_BOTTOM = re.compile(rf"\n(?:{_IDEOGRAPH}\n){{3,}}{_IDEOGRAPH}(?=\n|\Z)")


def plain_letters(text: str) -> str:
    """Return text with ligatures as letters, and with characters that stand below each other in one line."""
    if text.isascii():
        return text
    for ligature, letters in _LIGATURES.items():
        text = text.replace(ligature, letters)
    return _FROM_TOP_TO_BOTTOM.sub(lambda match: "\n" + match[0].replace("\n", ""), f"\n{text}")[1:]


class Hyphens:
    """Decides for one document which hyphens at the ends of lines belong to their words.

    The document itself is asked first, whether it has the word elsewhere, with a hyphen or without; then how frequent
    the word and its halves are in its language.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Take the texts of all pages."""
        self._texts = texts
        self._words: Counter[str] | None = None
        self._language: str | None = None

    def joined(self, text: str) -> str:
        """Return a page's text with the words whole that were divided between lines, and without soft hyphens."""
        if not any(mark in text for mark in _BREAKS):
            return text
        return _BREAK.sub(self._replacement, text).replace(_SOFT_HYPHEN, "")

    def _replacement(self, match: re.Match[str]) -> str:
        text = match.string
        if not text[max(0, match.start() - 1) : match.start()].isalnum():
            return match[0]
        left = _LAST_WORD.search(text[max(0, match.start() - _REACH) : match.start()])
        right = _FIRST_WORD.match(text[match.end() : match.end() + _REACH])
        if match[1] == _SOFT_HYPHEN:
            return ""
        return match[1] if left is None or right is None or self._belongs(left[0], right[0]) else ""

    def _belongs(self, left: str, right: str) -> bool:
        """Return whether the hyphen between the halves is part of the word."""
        capitals = left.isupper() and right.isupper() and min(len(left), len(right)) > 1
        if not (left.isalpha() and right.isalpha()) or len(left) == 1:
            return True
        if not capitals and (right[0].isupper() or left.isupper()):
            return True
        left, right = left.casefold(), right.casefold()
        with_hyphen, without = self._in_document(f"{left}-{right}"), self._in_document(left + right)
        if with_hyphen or without:
            return with_hyphen > without
        if self._language is None:
            middle = len(self._texts) // 2
            self._language = language_of("\n".join(self._texts[max(0, middle - 1) : middle + 2])) or ""
        if self._language in _COMPOUNDING:
            return False
        frequency = frequencies(self._language)
        if frequency is None:
            return False
        halves = min(frequency.get(left, 0), frequency.get(right, 0))
        return halves > 0 and frequency.get(left + right, 0) * _RARER < halves

    def _in_document(self, word: str) -> int:
        if self._words is None:
            self._words = Counter(chain.from_iterable(_WORD.findall(text.casefold()) for text in self._texts))
        return self._words[word]


@lru_cache(maxsize=2)
def frequencies(language: str) -> Mapping[str, int] | None:
    """Return how often words are used in a language, None where that is not known."""
    if language not in LANGUAGES:
        return None
    from spellchecker import SpellChecker

    dictionary: Mapping[str, int] = SpellChecker(language=language).word_frequency.dictionary
    return dictionary
