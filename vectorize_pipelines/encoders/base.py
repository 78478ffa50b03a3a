"""What every encoder engine provides, and what the rest of the project may rely on.

Engines live in `engines/`; `engines.registry` picks one for `load_encoder`. The pipeline, the chunker
and the search command call only what is declared here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.errors import ItemError

if TYPE_CHECKING:  # numpy takes longer to import than describing a model does
    import numpy as np
    import numpy.typing as npt

Vectors: TypeAlias = "npt.NDArray[np.float32]"
Purpose = Literal["document", "query"]


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What a model is, known from its configuration alone: reading it loads no weights.

    name        as the user named it, e.g. `sentence-transformers/all-MiniLM-L6-v2`
    revision    12 hexadecimal digits over weights, configuration and tokenizer
    dimension   length of a vector
    max_length  tokens that the model takes, special tokens included; None for a model without a limit
    pooling     `mean`, `cls`, `max`, … as the model's own configuration says
    prompt      put in front of a document before it is embedded; empty for most models
    query_prompt  put in front of a query
    modalities  what can be encoded
    normalized  whether vectors have unit length
    """

    name: str
    revision: str
    dimension: int
    max_length: int | None
    pooling: str
    prompt: str
    query_prompt: str
    modalities: frozenset[Modality]
    normalized: bool

    @property
    def fingerprint(self) -> str:
        """Everything that decides a document's vector, readable; two equal ones give equal vectors.

        The engine and its precision are not part of it: every engine is held to the same result.
        """
        prompt = f" prompt={self.prompt!r}" if self.prompt else ""
        return (
            f"{self.name}@{self.revision} dim={self.dimension} pooling={self.pooling} "
            f"max_length={self.max_length} normalized={str(self.normalized).lower()}{prompt}"
        )


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine runs a model, how, and why this one: shown in metadata and by `vectorize doctor`."""

    engine: str
    device: str
    precision: str
    reason: str


class TokenCount(NamedTuple):
    """The tokens of a text, special tokens and the documents' prompt included.

    seen  those that the model takes
    cut   those beyond the model's maximum, which it does not take; 0 where the text fits, or nobody here can tell
    """

    seen: int
    cut: int


def count_within(tokens: int, longest: int | None) -> TokenCount:
    """Return the count of a text of so many tokens, for a model that takes `longest` at most; None: any number."""
    seen = tokens if longest is None else min(tokens, longest)
    return TokenCount(seen, tokens - seen)


@dataclass(slots=True)
class Metered:
    """What became of some items, and what a provider counted for them.

    vectors, errors  as `Encoder.encode_each` returns them
    tokens           by position, as a provider counted them; None where none did
    cost             of all together, in the currency of the price table
    counts           of texts, by position, where the engine counts them while it takes them apart
    """

    vectors: Vectors
    errors: dict[int, ItemError]
    tokens: list[int] | None
    cost: float = 0.0
    counts: list[TokenCount] | None = None


#: Counts the tokens of texts.
CountTokens: TypeAlias = Callable[[Sequence[str]], list[TokenCount]]


class Tokenizer(Protocol):
    """The model's own tokenizer, as far as cutting texts to length needs it."""

    @property
    def special_tokens(self) -> int:
        """Tokens that the model adds around every text."""

    @property
    def counts_add_up(self) -> bool:
        """Whether a text has as many tokens as its words, divided by spaces and line ends, have one by one."""

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """For each text the (start, end) of its tokens in characters; special tokens left out, none truncated."""


class CountingTokenizer(Tokenizer, Protocol):
    """A tokenizer that also counts."""

    def counts(self, texts: Sequence[str]) -> list[TokenCount]:
        """Return how many tokens of each text the model takes, and how many it does not."""


class Encoder(ABC):
    """A loaded model. Thread-safe: several threads may call `encode` at once; calls may be serialised."""

    spec: EncoderSpec
    choice: EngineChoice

    @abstractmethod
    def encode(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Vectors:
        """Vectors of shape (n, dimension), float32, in the order given; an empty input gives shape (0, dimension).

        A `str` is a text; a `Path` or `bytes` an encoded image. What is longer than the model's maximum is
        truncated, as the model does. Called by the pipeline's encoder thread for every batch and by search for
        one query. Raises `ItemError` where a modality is not the model's or an image cannot be decoded (`encode_each`
        goes on), and `UnknownModelError` where the model turns out to make no vectors of texts; any other exception is
        a fault of the machine or the engine, fails the run, and nothing of the batch is acknowledged.
        """

    def encode_each(
        self, items: Sequence[str | Path | bytes], purpose: Purpose = "document"
    ) -> tuple[Vectors, dict[int, ItemError]]:
        """`encode` for items that may fail one by one, as images do that cannot be decoded.

        Gives vectors of shape (n, dimension), and by position the errors of the items that failed: their rows are
        NaN, the other items are not affected. An engine for texts alone has no items that fail.
        """
        return self.encode(items, purpose), {}

    def encode_metered(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> "Metered":
        """`encode_each`, with what it cost. Called by the pipeline's encoder thread for every batch.

        What runs on this machine costs nothing; an engine that has a tokenizer tells its counts.
        """
        vectors, errors = self.encode_each(items, purpose)
        return Metered(vectors, errors, None)

    def count_tokens(self, texts: Sequence[str], purpose: Purpose = "document") -> list[int]:
        """How many tokens the model sees of each text: prompt and special tokens included, what is truncated not.

        Called by the HTTP server, which tells its callers. An encoder without a tokenizer counts words.
        """
        return [len(text.split()) for text in texts]

    @property
    def streams(self) -> int:
        """How many calls of `encode` are computed side by side, each on cores of its own; 1 where they take turns."""
        return 1

    @property
    def memory_bytes(self) -> int:
        """What the loaded model takes, as far as the engine knows; 0 where it does not. Reported by the cache."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """Frees the model's memory. Called when it is evicted from the cache; the encoder is not used after."""
