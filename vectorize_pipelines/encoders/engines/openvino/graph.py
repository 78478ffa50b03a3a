"""A compiled OpenVINO graph that turns token ids into vectors, on all cores.

Used by the exporter, which measures a graph before it is trusted, and by the encoder.
"""

import math
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vectorize_pipelines.encoders.base import Vectors
from vectorize_pipelines.encoders.batching import (
    SharedBatches,
    TokenBatch,
    TokenBudget,
    Tokenize,
    out_of_memory,
    token_batches,
)
from vectorize_pipelines.encoders.engines.openvino_runtime import compiled, scaled_to_unit_length
from vectorize_pipelines.encoders.hardware.machine import physical_cores

#: Measured best for one stream a core: smaller batches pay more per call, larger ones fall out of the cache.
BATCH_TOKENS = 2048

#: In bfloat16, batches of longer texts are made as wide as the next multiple of `WIDTH_STEP`. OpenVINO prepares its
#: kernels again for every shape, and its attention takes what is beyond a multiple of 16 one by one: on two cores with
#: AMX, passages of 155 tokens on average are 7 to 12 % faster so. Shorter texts gain nothing, and float32 loses.
ROUNDED_FROM, WIDTH_STEP = 96, 16

#: Batches of twice as many texts or more hold a multiple of it: short texts then make a quarter of the shapes. Texts of
#: 8 tokens are encoded in 8 % less time, those of 20 to 60, whose batches are up to a third smaller, in as much.
COUNT_STEP = 16


def padded_width(longest: int, precision: str, max_length: int | None) -> int:
    """Return the width in tokens of a batch whose longest text has `longest`; at most what the model takes."""
    if precision != "bfloat16" or longest < ROUNDED_FROM or max_length is None:
        return longest
    return max(longest, min(max_length, math.ceil(longest / WIDTH_STEP) * WIDTH_STEP))


class Graph:
    """A graph with inputs (token ids, attention mask) and output (n, dimension), compiled for this CPU.

    One stream per core, each computing one batch at a time: on a CPU that is faster than one batch on all
    cores. Thread-safe; calls share the streams.

    model         the graph's .xml
    precision     a key of `PRECISION_HINTS`
    padding       token id that fills up shorter texts
    dimension     length of a vector
    normalized    whether its vectors are of length 1
    max_length    tokens that the model takes at most, None where it does not say
    batch_tokens  tokens that one batch may have, padding to its longest text included

    `streams` is how many batches are computed side by side.
    """

    def __init__(
        self,
        model: Path,
        *,
        precision: str,
        padding: int,
        dimension: int,
        normalized: bool,
        max_length: int | None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self.precision = precision
        self._padding = padding
        self._dimension = dimension
        self._normalized = normalized
        self._max_length = max_length
        self.streams = physical_cores()
        self._calls = 0
        self._lock = threading.Lock()
        self._budget = TokenBudget(batch_tokens)
        graph = compiled(model, precision, self.streams)
        self._requests: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(self.streams):
            self._requests.put(graph.create_infer_request())

    def encode(self, texts: Sequence[str], tokenize: Tokenize) -> Vectors:
        """Return vectors, (n, dimension), float32, in the order given. `tokenize` is called as work proceeds."""
        import numpy as np

        vectors = np.empty((len(texts), self._dimension), dtype=np.float32)
        with self._share() as streams:
            batches = SharedBatches(
                token_batches(texts, tokenize, self._budget, streams=streams, count_step=COUNT_STEP)
            )
            workers = min(self.streams, len(texts))
            if workers < 2:
                self._work(batches, vectors)
            else:
                with ThreadPoolExecutor(workers, thread_name_prefix="encode") as pool:
                    for done in [pool.submit(self._work, batches, vectors) for _ in range(workers)]:
                        done.result()
        return vectors

    def close(self) -> None:
        """Free the graph. Nothing may be encoding."""
        self._requests = queue.LifoQueue()

    @contextmanager
    def _share(self) -> Iterator[int]:
        """Take the streams over which a call is spread evenly: fewer beside others, which keep the rest busy.

        The fewer, the larger are the batches of a small call.
        """
        with self._lock:
            self._calls += 1
            streams = max(1, self.streams // self._calls)
        try:
            yield streams
        finally:
            with self._lock:
                self._calls -= 1

    def _work(self, batches: SharedBatches, vectors: Vectors) -> None:
        try:
            while (batch := batches.next()) is not None:
                self._compute(batch, vectors)
        except BaseException:
            batches.stop()
            raise

    def _compute(self, batch: TokenBatch, vectors: Vectors) -> None:
        width = padded_width(batch.longest, self.precision, self._max_length)
        tokens, mask = batch.padded(self._padding, width)
        try:
            self._infer(batch, tokens, mask, vectors)
        except (MemoryError, RuntimeError) as error:
            if len(batch.ids) == 1 or not out_of_memory(error):
                raise
            self._budget.failed(tokens.size)
            for half in batch.halves():
                self._compute(half, vectors)
        else:
            self._budget.succeeded()

    def _infer(self, batch: TokenBatch, tokens: Any, mask: Any, vectors: Vectors) -> None:
        # Synchronous calls from threads of our own, not an AsyncInferQueue: its callbacks need the interpreter's
        # lock, and destroying a compiled model waits, holding that lock, for the thread that runs the last one.
        request = self._requests.get()
        try:
            request.infer([tokens, mask], share_inputs=True)
            made = request.get_output_tensor(0).data
            vectors[batch.positions] = scaled_to_unit_length(made, self.precision) if self._normalized else made
        finally:
            self._requests.put(request)
