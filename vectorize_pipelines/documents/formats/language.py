"""The language that a text is written in, told from a bounded sample of it."""

from functools import lru_cache
from typing import Any

SAMPLE_CHARACTERS = 4_000
MIN_LETTERS = 20
MIN_LETTERS_UNSPACED = 6
MIN_PROBABILITY = 0.5


def language_of(text: str) -> str | None:
    """ISO 639-1 code, or None where the text is too short or the answer too uncertain."""
    # From the middle: the beginning of a document is often a letterhead, a table of contents, a licence.
    start = max(0, (len(text) - SAMPLE_CHARACTERS) // 2)
    sample = text[start : start + SAMPLE_CHARACTERS]
    letters = sum(character.isalpha() for character in sample)
    ideographs = sum("\u3040" <= character <= "\ud7ff" for character in sample)
    if letters < MIN_LETTERS and ideographs < MIN_LETTERS_UNSPACED:
        return None
    code, probability = _identifier().classify(sample)
    return code if probability >= MIN_PROBABILITY and len(code) == 2 else None


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
