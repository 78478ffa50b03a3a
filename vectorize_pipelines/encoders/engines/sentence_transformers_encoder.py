"""Models as sentence-transformers itself runs them: correct before fast.

The engine `sentence-transformers` is this and no more; other engines are held against its float32 vectors.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vectorize_pipelines.encoders.base import Encoder, EngineChoice, Metered, Purpose, TokenCount, Vectors, count_within
from vectorize_pipelines.encoders.batching import out_of_memory
from vectorize_pipelines.encoders.engines.base import LoadRequest, require_texts
from vectorize_pipelines.encoders.engines.equality import sample_texts
from vectorize_pipelines.encoders.models.tokenizer import encodable
from vectorize_pipelines.encoders.models.vetting import model_view
from vectorize_pipelines.errors import UnknownModelError

#: The engine's name.
NAME = "sentence-transformers"

#: sentence-transformers' own default; larger batches gain nothing on a CPU and waste padding.
BATCH_SIZE = 32

#: Loggers that report every load on stderr.
_CHATTY = ("sentence_transformers", "transformers", "huggingface_hub")


class SentenceTransformersEncoder(Encoder):
    """A model loaded by sentence-transformers."""

    def __init__(self, request: LoadRequest, reason: str) -> None:
        self.spec = request.spec
        self.choice = EngineChoice(NAME, request.device, "float32", reason)
        self._lock = threading.Lock()
        self._model: Any = load_model(request)
        self._batch_size = _batch_size(request)

    @property
    def model(self) -> Any:
        """The `SentenceTransformer` itself, for exporting it."""
        return self._model

    def encode(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Vectors:
        import numpy as np

        texts = require_texts(items, self.spec.name)
        if not texts:
            return np.empty((0, self.spec.dimension), dtype=np.float32)
        with self._lock:
            return np.ascontiguousarray(self._encode(texts, purpose, self._batch_size), dtype=np.float32)

    def encode_metered(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Metered:
        vectors = self.encode(items, purpose)
        prompt = self.spec.query_prompt if purpose == "query" else self.spec.prompt
        with self._lock:  # tokenizers that truncate and pad are not thread-safe
            counts = [self._untruncated(prompt + encodable(str(text))) for text in items]
        return Metered(vectors, {}, None, counts=counts)

    def count_tokens(self, texts: Sequence[str], purpose: Purpose = "document") -> list[int]:
        prompt = self.spec.query_prompt if purpose == "query" else self.spec.prompt
        with self._lock:  # tokenizers that truncate and pad are not thread-safe
            return [self._count(prompt + encodable(text), purpose) for text in texts]

    def sample_vectors(self) -> Vectors:
        """Return what other engines are held against: vectors of `equality.sample_texts`."""
        import numpy as np

        # One by one: together all would be as long as the longest.
        return np.vstack([self.encode([text]) for text in sample_texts(self.spec.max_length)])

    @property
    def memory_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self._model.parameters())

    def _count(self, text: str, purpose: Purpose) -> int:
        """Return the tokens of a text, prompt in front: alone it needs no padding. Words, where the model has none."""
        ids = self._model.preprocess([text], task=purpose).get("input_ids")
        return len(text.split()) if ids is None else int(ids.numel())

    def _untruncated(self, text: str) -> TokenCount:
        """Return the count of a text, prompt in front. Words, where the model has no tokenizer of transformers'."""
        tokenize = getattr(self._model, "tokenizer", None)
        if not callable(tokenize):
            return TokenCount(len(text.split()), 0)
        return count_within(len(tokenize(text, truncation=False, verbose=False)["input_ids"]), self.spec.max_length)

    def _encode(self, texts: list[str], purpose: Purpose, batch_size: int) -> Any:
        """Encode, with halved batches while they do not fit into memory."""
        encode = self._model.encode_query if purpose == "query" else self._model.encode_document
        prompt = self.spec.query_prompt if purpose == "query" else self.spec.prompt
        try:
            return encode(texts, prompt=prompt, batch_size=batch_size, show_progress_bar=False)
        except KeyError as error:
            if error.args != ("sentence_embedding",):
                raise
            raise UnknownModelError(
                f"the model {self.spec.name} makes vectors of tokens, none of a text: its modules.json names no "
                "module for pooling"
            ) from error
        except (MemoryError, RuntimeError) as error:
            if batch_size == 1 or not out_of_memory(error):
                raise
        return self._encode(texts, purpose, batch_size // 2)

    def close(self) -> None:
        self._model = None
        if self.choice.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()


def _batch_size(request: LoadRequest) -> int:
    """Return how many texts go through the model together: as many of the longest as the token budget holds."""
    if request.spec.max_length is None:
        return max(1, int(BATCH_SIZE * request.token_budget_share))
    longest = request.spec.max_length
    return max(1, min(BATCH_SIZE, request.batch_tokens(BATCH_SIZE * longest) // longest))


def load_model(request: LoadRequest) -> Any:
    """Return the `SentenceTransformer` in float32 from the model's directory, silently.

    Raises `UnknownModelError` where the files are incomplete or corrupt.
    """
    with quiet():
        import torch
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer

        safe = None if request.pickled_weights else True
        try:
            with model_view(
                request.layout.directory, request.layout.module_directories, pickled=request.pickled_weights
            ) as view:
                model = SentenceTransformer(
                    str(view),
                    device=request.device,
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs={"dtype": torch.float32, "use_safetensors": safe, "weights_only": True},
                )
        except (OSError, ValueError, RuntimeError, ImportError, LookupError, TypeError, SafetensorError) as error:
            if out_of_memory(error):
                raise
            raise UnknownModelError(f"the model {request.name} cannot be loaded: {error}") from error
    if request.spec.max_length is not None:
        model.max_seq_length = request.spec.max_length
    return model.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and reports of a load off the terminal; errors are raised, not logged."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as transformers_logging

    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    bars: list[tuple[bool, Any, Any]] = [
        (not are_progress_bars_disabled(), disable_progress_bars, enable_progress_bars),
        (
            transformers_logging.is_progress_bar_enabled(),
            transformers_logging.disable_progress_bar,
            transformers_logging.enable_progress_bar,
        ),
    ]
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        for _, disable, _ in bars:
            disable()
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for shown, _, enable in bars:
            if shown:
                enable()
