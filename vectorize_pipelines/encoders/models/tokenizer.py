"""The model's own tokenizer, without torch or transformers wherever the model brings a tokenizer.json.

The chunker cuts texts by `offsets`; engines take `ids`. Texts are tokenized one after another in the calling
thread on small machines: that leaves the cores to inference, and a process that never used the `tokenizers`
package's own threads may be forked without its warning and without losing them.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vectorize_pipelines.core.extras import missing
from vectorize_pipelines.encoders.base import TokenCount, count_within
from vectorize_pipelines.encoders.models.files import remember
from vectorize_pipelines.encoders.models.layout import ModelLayout
from vectorize_pipelines.encoders.models.vetting import model_view
from vectorize_pipelines.errors import MissingExtraError, UnknownModelError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as PackageTokenizer

#: From so many cores and texts on, tokenizing in parallel is worth it: below, inference is the bottleneck.
PARALLEL_FROM_CORES = 8
PARALLEL_FROM_TEXTS = 64

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class ModelTokenizer:
    """The tokenizer of a model; implements the `Tokenizer` protocol. Thread-safe.

    source      content of a tokenizer.json
    max_length  tokens with special tokens after which `ids` truncates; None: never
    prompt      put in front of every document
    lower_case  whether texts are lower-cased before the tokenizer's own normalisation

    Raises `UnknownModelError` where `source` is no tokenizer.
    """

    def __init__(
        self, source: str, *, max_length: int | None = None, prompt: str = "", lower_case: bool = False
    ) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(source)
        except Exception as error:  # the package raises bare `Exception`
            raise UnknownModelError(f"not a tokenizer.json of the tokenizers package: {error}") from error
        # tokenizer.json may carry a truncation and a padding, which sentence-transformers overrides too.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._counts_add_up = _divides_at_whitespace(self._tokenizer)
        if lower_case:
            self._lower_case_first()
        self.max_length = max_length
        self.prompt = prompt
        self._added = int(self._tokenizer.num_special_tokens_to_add(is_pair=False))
        self._prompt_tokens = len(self._tokenizer.encode(prompt, add_special_tokens=False)) if prompt else 0

    def to_json(self) -> str:
        """Return the content of a tokenizer.json that tokenizes alike, but for truncation and prompt."""
        return str(self._tokenizer.to_str())

    @property
    def special_tokens(self) -> int:
        """The tokens that the model adds around every document: its special tokens and those of its prompt."""
        return self._added + self._prompt_tokens

    @property
    def counts_add_up(self) -> bool:
        """True of BERT's tokenizer, which divides a text at whitespace before it does anything else."""
        return self._counts_add_up

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Return each text's (start, end) of tokens in characters; special tokens left out, none truncated.

        In order of the text. Tokens of a byte-level vocabulary that share a character share its offsets, and a
        token that stands for a mere word boundary may be empty (start == end). The prompt is not part of it.
        """
        return [list(encoding.offsets) for encoding in self._encode(texts)]

    def counts(self, texts: Sequence[str]) -> list[TokenCount]:
        """Return how many tokens of each text the model takes, and how many it does not; as a document's."""
        texts = [self.prompt + text for text in texts] if self.prompt else texts
        return [count_within(len(encoding), self.max_length) for encoding in self._encode(texts, special_tokens=True)]

    def ids(
        self, texts: Sequence[str], prompt: str | None = None, counts: dict[str, TokenCount] | None = None
    ) -> list[list[int]]:
        """Return each text's token ids as the model sees them: prompt in front, truncated, special tokens around.

        `prompt` takes the place of the documents' prompt. The counts of each text are put into `counts`.
        """
        prompt = self.prompt if prompt is None else prompt
        prompted = [prompt + text for text in texts] if prompt else texts
        longest = float("inf") if self.max_length is None else self.max_length
        # Special tokens are added while encoding: doing so afterwards takes a sixth of the time again.
        encoded = [encoding.ids for encoding in self._encode(prompted, special_tokens=True)]
        if counts is not None:
            counts.update(zip(texts, (count_within(len(ids), self.max_length) for ids in encoded), strict=True))
        return [
            ids if len(ids) <= longest else self._truncated(text) for text, ids in zip(prompted, encoded, strict=True)
        ]

    def _truncated(self, text: str) -> list[int]:
        """Return the ids of a text that is too long: the text is cut, not the special tokens behind it."""
        (encoding,) = self._encode([text])
        encoding.truncate(max(0, (self.max_length or 0) - self._added))
        return list(self._tokenizer.post_process(encoding, None, True).ids)

    def _encode(self, texts: Sequence[str], *, special_tokens: bool = False) -> "list[Encoding]":
        """Encode with special tokens for their ids, else for offsets, which the fast way of encoding leaves out."""
        texts = [encodable(text) for text in texts]
        if len(texts) >= PARALLEL_FROM_TEXTS and (os.cpu_count() or 1) >= PARALLEL_FROM_CORES:
            encode = self._tokenizer.encode_batch_fast if special_tokens else self._tokenizer.encode_batch
            return encode(texts, add_special_tokens=special_tokens)
        return [self._tokenizer.encode(text, add_special_tokens=special_tokens) for text in texts]

    def _lower_case_first(self) -> None:
        from tokenizers import normalizers

        own = self._tokenizer.normalizer
        self._tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Lowercase(), *([own] if own is not None else [])]
        )


def _divides_at_whitespace(tokenizer: "PackageTokenizer") -> bool:
    """Return whether it is BERT's, and no token of its own reaches over whitespace."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model)
    return [type(part).__name__ for part in parts] == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and not any(
        character.isspace() for token in tokenizer.get_added_tokens_decoder().values() for character in token.content
    )


def encodable(text: str) -> str:
    """Return `text` with U+FFFD for every lone surrogate, so that offsets stay valid.

    JSON may carry half of a surrogate pair; it is no character, and no tokenizer takes it.
    """
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def model_tokenizer(layout: ModelLayout, *, cache_directory: Path | None, revision: str) -> ModelTokenizer:
    """Return the tokenizer of a model; raises `UnknownModelError` where there is none that has offsets.

    A model without tokenizer.json is converted by transformers once and kept under `cache_directory`.
    """
    return ModelTokenizer(
        tokenizer_json(layout.transformer_directory, cache_directory=cache_directory, revision=revision),
        max_length=layout.max_length,
        prompt=layout.prompt,
        lower_case=layout.lower_case,
    )


def tokenizer_json(directory: Path, *, cache_directory: Path | None, revision: str) -> str:
    """Return the content of the tokenizer.json in `directory`, or of the one that transformers makes instead."""
    kept = cache_directory / "tokenizers" / f"{revision}.json" if cache_directory else None
    for path in (directory / "tokenizer.json", kept):
        if path is not None and path.is_file():
            return path.read_text(encoding="utf-8")
    converted = _convert(directory)
    if kept is not None:
        remember(kept, converted)
    return converted


def _convert(directory: Path) -> str:
    lacking = missing(f"the model in {directory} has no tokenizer.json, and making one", "sentence-transformers")
    if lacking is not None:
        raise MissingExtraError(lacking)
    from transformers import AutoTokenizer

    try:
        with model_view(directory) as view:
            tokenizer = AutoTokenizer.from_pretrained(str(view), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UnknownModelError(f"the model in {directory} has no tokenizer that can be loaded: {error}") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnknownModelError(
            f"the tokenizer of the model in {directory} ({type(tokenizer).__name__}) gives no offsets"
        )
    return str(tokenizer.backend_tokenizer.to_str())
