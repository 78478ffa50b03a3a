"""The way from texts to vectors on one device: tokenizing, copying, computing and reading back go on side by side.

    thread `tokenize`   texts -> batches -> packed tokens in pinned memory        at most `AHEAD` batches ahead
    calling thread      copies tokens, starts the forward pass, starts to copy its vectors back,
                        and only then waits for the vectors of the batch before

So the device always has the next batch to go on with. On the CPU, where a forward pass ends before the next begins,
the same steps leave the overlap of tokenizing and computing. Called by the engine `torch`.
"""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.core.prefetch import prefetch
from vectorize_pipelines.encoders.base import Vectors
from vectorize_pipelines.encoders.batching import TokenBatch, TokenBudget, Tokenize, out_of_memory, token_batches
from vectorize_pipelines.encoders.engines.torch.forward import PackedTokens, pack
from vectorize_pipelines.encoders.hardware.devices import device_kind
from vectorize_pipelines.errors import DeviceMemoryError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

#: From packed tokens on the device to vectors of shape (texts, dimension), float32, there.
Forward = Callable[[PackedTokens], "torch.Tensor"]

#: Batches that wait tokenized.
AHEAD = 3

#: Batches whose vectors are still being computed or copied while the next one is started.
IN_FLIGHT = 1


class TorchPipeline:
    """The forward pass over any number of texts. Thread-safe: calls take turns on the device, batch by batch.

    forward    may raise what `batching.out_of_memory` recognises: the batch is then split, and `budget` halved
    device     where `forward` computes
    budget     of a batch
    padding    as in `EncoderWeights`
    dimension  length of a vector
    """

    def __init__(
        self, forward: Forward, *, device: str, budget: TokenBudget, padding: int | None, dimension: int
    ) -> None:
        self._forward = forward
        self._device = device
        self._budget = budget
        self._padding = padding
        self._dimension = dimension
        self._transfers = Transfers(device)
        self._turn = threading.Lock()

    def encode(self, texts: Sequence[str], tokenize: Tokenize) -> Vectors:
        """Return vectors of shape (n, dimension), float32, in the order given. `tokenize` is called by another thread.

        Raises `DeviceMemoryError` where a single text does not fit into memory.
        """
        import numpy as np

        results = _Results(np.empty((len(texts), self._dimension), dtype=np.float32))
        with contextlib.closing(prefetch(self._prepared(texts, tokenize), AHEAD, "tokenize")) as batches:
            for batch in batches:
                self._compute(batch, results)
        return results.finished()

    def close(self) -> None:
        """Let go of the forward pass and its memory. Nothing may be encoding."""
        del self._forward
        self._transfers.release()

    def _prepared(self, texts: Sequence[str], tokenize: Tokenize) -> "Generator[_Batch, None, None]":
        for batch in token_batches(texts, tokenize, self._budget):
            yield self._prepare(batch)

    def _prepare(self, batch: TokenBatch) -> "_Batch":
        return _Batch(batch, self._transfers.pinned(pack(batch, self._padding)))

    def _compute(self, batch: "_Batch", results: "_Results") -> None:
        alone = len(batch.texts.ids) == 1
        if batch.texts.size > self._budget.tokens and not alone:  # cut before memory ran out
            self._compute_halves(batch, results)
            return
        vectors = self._vectors(batch)
        if vectors is None:
            results.wait()  # what is in flight holds memory too
            self._transfers.release()
            self._budget.failed(batch.texts.size)
            if not alone:
                self._compute_halves(batch, results)
                return
            vectors = self._vectors(batch)
            if vectors is None:
                raise DeviceMemoryError(self._no_room(batch))
        self._budget.succeeded()
        results.add(batch.texts.positions, self._transfers.reading(vectors))

    def _compute_halves(self, batch: "_Batch", results: "_Results") -> None:
        for half in batch.texts.halves():
            self._compute(self._prepare(half), results)

    def _vectors(self, batch: "_Batch") -> "torch.Tensor | None":
        """Return vectors on the device; None where memory ran out: an error kept would keep what was computed."""
        try:
            with self._turn:
                return self._forward(self._transfers.uploaded(batch.tokens))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            logger.warning(
                "a batch of %s texts and %s tokens did not fit into the memory of %s: %s",
                batch.tokens.texts,
                batch.tokens.tokens,
                self._device,
                error,
            )
            return None

    def _no_room(self, batch: "_Batch") -> str:
        return (
            f"a text of {batch.tokens.tokens} tokens alone does not fit into the memory of {self._device}: end what "
            "else uses this device, choose another one (encoder.device), or take a smaller model"
        )


@dataclass(frozen=True, slots=True)
class _Batch:
    """Texts, and their tokens ready to be copied."""

    texts: TokenBatch
    tokens: PackedTokens


class _Results:
    """The vectors so far; those of a batch are waited for only when `IN_FLIGHT` later ones have been started."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._coming: deque[tuple[list[int], Callable[[], Vectors]]] = deque()

    def add(self, positions: list[int], read: Callable[[], Vectors]) -> None:
        """Add a batch; `read` waits for the vectors of the texts at `positions`."""
        self._coming.append((positions, read))
        if len(self._coming) > IN_FLIGHT:
            self._take()

    def wait(self) -> None:
        """Wait until nothing is being computed."""
        while self._coming:
            self._take()

    def finished(self) -> Vectors:
        """Return all vectors."""
        self.wait()
        return self._vectors

    def _take(self) -> None:
        positions, read = self._coming.popleft()
        self._vectors[positions] = read()


class Transfers:
    """Copies to a device and back. On CUDA in streams of their own, so that they overlap with computing."""

    def __init__(self, device: str) -> None:
        import torch

        self._device = torch.device(device)
        self._cuda = device_kind(device) == "cuda"
        if self._cuda:
            stream: Any = torch.cuda.Stream
            self._up, self._down = stream(self._device), stream(self._device)

    def pinned(self, tokens: PackedTokens) -> PackedTokens:
        """Return the tokens in memory that the device can read by itself; on other devices the tokens as they are."""
        if not self._cuda:
            return tokens
        import torch

        with torch.cuda.device(self._device):  # pinning would make a context on the first device otherwise
            return tokens.on(tokens.numbers.pin_memory())

    def uploaded(self, tokens: PackedTokens) -> PackedTokens:
        """Return the tokens on the device, once what is computed there next needs them."""
        if not self._cuda:
            return tokens.on(tokens.numbers.to(self._device))
        import torch

        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._up):
            numbers = tokens.numbers.to(self._device, non_blocking=True)
        computing.wait_stream(self._up)
        numbers.record_stream(computing)
        return tokens.on(numbers)

    def reading(self, vectors: "torch.Tensor") -> Callable[[], Vectors]:
        """Start to copy vectors to main memory; what it returns waits for them."""
        if not self._cuda:
            return lambda: vectors.cpu().numpy()
        import torch

        with torch.cuda.device(self._device):
            buffer = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._down):
            buffer.copy_(vectors, non_blocking=True)
            done = self._down.record_event()
        vectors.record_stream(self._down)

        def read() -> Vectors:
            done.synchronize()
            return buffer.numpy()

        return read

    def release(self) -> None:
        """Return memory that torch keeps for later to the device."""
        import torch

        if self._cuda:
            with torch.cuda.device(self._device):
                torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()
