"""What texts are cut by for a remote model, whose tokenizer nobody here has."""

import re
from collections.abc import Sequence

from vectorize_pipelines.encoders.base import TokenCount

#: Characters of Chinese, Japanese and Korean, of which a token is one; of other words four, of the rest one.
_EAST_ASIAN = "\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef"
_TOKEN = re.compile(rf"[{_EAST_ASIAN}]|[^\W{_EAST_ASIAN}]{{1,4}}|[^\w\s]")


class EstimatedTokenizer:
    """A `Tokenizer` that has about as many tokens as those of today's models, rather more than fewer."""

    special_tokens = 2
    counts_add_up = True

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """As in `Tokenizer`."""
        return [[found.span() for found in _TOKEN.finditer(text)] for text in texts]

    def counts(self, texts: Sequence[str]) -> list[TokenCount]:
        """As in `Tokenizer`; what a remote model does not take, its provider refuses."""
        return [TokenCount(self.count(text), 0) for text in texts]

    def count(self, text: str) -> int:
        """Return how many tokens a text has, the special ones included."""
        return sum(1 for _ in _TOKEN.finditer(text)) + self.special_tokens
