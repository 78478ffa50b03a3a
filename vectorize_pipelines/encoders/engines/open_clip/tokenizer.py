"""Tokens of CLIP's text towers. Called by the engine `open_clip`.

`ClipTokenizer` returns what open_clip's `SimpleTokenizer` does, without importing torch;
models with a tokenizer of their own go through open_clip.
"""

import gzip
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from vectorize_pipelines.encoders.base import TokenCount, count_within
from vectorize_pipelines.encoders.models.open_clip import ClipModel, tokenizer_repository_folder, vocabulary_file
from vectorize_pipelines.encoders.models.vetting import copy_files
from vectorize_pipelines.errors import UnknownModelError

START, END = "<start_of_text>", "<end_of_text>"

#: Merges that OpenAI's vocabulary of 49,408 keeps of the file: less 256 bytes, twice, and the two special tokens.
_MERGES = 49152 - 256 - 2

_END_OF_WORD = "</w>"

#: `SimpleTokenizer.pat` of open_clip.
_PATTERN = rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"


class TextTokenizer(Protocol):
    """The tokenizer that the text side of a CLIP model needs."""

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids: truncated, special tokens included, padding left out where it is known."""

    def counts(self, texts: Sequence[str]) -> list[TokenCount]:
        """Return how many tokens of each text the model takes, and how many it does not."""


class ClipTokenizer:
    """OpenAI's byte-pair encoding with the cleaning of open_clip (ftfy, HTML entities, white space, lower case)."""

    def __init__(self, context_length: int) -> None:
        import regex

        self._model, self._special = _byte_pairs()
        self._pattern = regex.compile(_PATTERN, regex.IGNORECASE)
        self._context_length = context_length

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids as `TextTokenizer.ids`; where a text is cut, its last token is the end token."""
        return [self._ids(text) for text in texts]

    def counts(self, texts: Sequence[str]) -> list[TokenCount]:
        """As `TextTokenizer.counts`."""
        totals = (sum(len(ids) for ids in self._pieces(text)) + 2 for text in texts)
        return [count_within(total, self._context_length) for total in totals]

    def _ids(self, text: str) -> list[int]:
        ids = [self._special[START]]
        for piece in self._pieces(text):
            if len(ids) >= self._context_length:
                break
            ids.extend(piece)
        return [*ids[: self._context_length - 1], self._special[END]]

    def _pieces(self, text: str) -> Iterator[list[int]]:
        for piece in self._pattern.findall(_clean(text)):
            special = self._special.get(piece)
            yield [token.id for token in self._model.tokenize(_as_bytes(piece))] if special is None else [special]


class OwnTokenizer:
    """A tokenizer that open_clip makes for a model that brings its own, e.g. SigLIP's; imports torch.

    As `open_clip.get_tokenizer`, which however hands the model's arguments on to transformers as they are, and lets
    transformers look for the files.
    """

    def __init__(self, model: ClipModel) -> None:
        try:
            self._tokenizer: Any = _own_tokenizer(model)
        except (OSError, ValueError, ImportError, LookupError) as error:
            raise UnknownModelError(f"the tokenizer of {model.name} cannot be loaded: {error}") from error
        self._context_length = model.context_length

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids as `TextTokenizer.ids`, with padding: these models may look at it."""
        rows: list[list[int]] = self._tokenizer(list(texts)).tolist()
        return rows

    def counts(self, texts: Sequence[str]) -> list[TokenCount]:
        """As `TextTokenizer.counts`."""
        return [count_within(self._total(text), self._context_length) for text in texts]

    def _total(self, text: str) -> int:
        inner = getattr(self._tokenizer, "tokenizer", None)
        if inner is None:  # open_clip's own, which adds a token at each end
            return len(self._tokenizer.encode(text)) + 2
        return len(inner(self._tokenizer.clean_fn(text), truncation=False)["input_ids"])


def _own_tokenizer(model: ClipModel) -> Any:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    arguments = dict(model.text_config.get("tokenizer_kwargs") or {})
    if not model.text_config.get("hf_tokenizer_name"):
        return SimpleTokenizer(context_length=model.context_length, **arguments)
    folder = model.tokenizer_folder or tokenizer_repository_folder(model)
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as view:
        copy_files(folder, Path(view), weights=False)
        return HFTokenizer(
            view,
            context_length=model.context_length,
            tokenizer_mode=model.text_config.get("tokenizer_mode"),
            local_files_only=True,
            trust_remote_code=False,
            **arguments,
        )


def clip_tokenizer(model: ClipModel) -> TextTokenizer:
    """Return the tokenizer of a model; raises `UnknownModelError` where it cannot be loaded."""
    return ClipTokenizer(model.context_length) if model.has_clip_tokenizer else OwnTokenizer(model)


def _clean(text: str) -> str:
    """Clean a text as `_clean_lower` of open_clip does."""
    import html

    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _as_bytes(piece: str) -> str:
    """Return UTF-8 in the printable alphabet of the vocabulary."""
    alphabet = _alphabet()
    return "".join(alphabet[byte] for byte in piece.encode("utf-8"))


@cache
def _alphabet() -> tuple[str, ...]:
    """Return a printable character for each byte, in the order of bytes; `bytes_to_unicode` of OpenAI's GPT-2."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters.update({byte: chr(256 + n) for n, byte in enumerate(others)})
    return tuple(characters[byte] for byte in range(256))


@cache
def _byte_pairs() -> tuple[Any, dict[str, int]]:
    """Return the encoding of one piece of text, and the ids of the special tokens."""
    from tokenizers.models import BPE

    with gzip.open(vocabulary_file(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : _MERGES + 1]
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    printable = sorted(_alphabet(), key=lambda character: (ord(character) >= 256, ord(character)))
    vocabulary = [*printable, *(each + _END_OF_WORD for each in printable), *(left + right for left, right in merges)]
    vocabulary += [START, END]
    ids = {token: position for position, token in enumerate(vocabulary)}
    special = {token: ids.pop(token) for token in (START, END)}
    return BPE(vocab=ids, merges=merges, end_of_word_suffix=_END_OF_WORD), special
