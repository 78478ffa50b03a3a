"""A compiled OpenVINO graph that turns token ids into vectors, on all cores.

Used by the exporter, which measures a graph before it is trusted, and by the encoder; `open_clip` compiles its towers
by `compiled`. The only place that imports openvino.
"""

import functools
import math
import os
import queue
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from vectorize_pipelines.encoders.batching import (
    SharedBatches,
    TokenBatch,
    TokenBudget,
    Tokenize,
    out_of_memory,
    token_batches,
)
from vectorize_pipelines.encoders.machine import physical_cores
from vectorize_pipelines.encoders.protocol import Vectors

#: What OpenVINO calls a precision.
PRECISION_HINTS = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}

#: Capability of a CPU that computes so in hardware.
_CAPABILITIES = {"bfloat16": "BF16", "float16": "FP16", "float32": "FP32"}

#: Measured best for one stream a core: smaller batches pay more per call, larger ones fall out of the cache.
BATCH_TOKENS = 2048

#: In bfloat16, batches of longer texts are made as wide as the next multiple of `WIDTH_STEP`. OpenVINO prepares its
#: kernels anew for every shape, and its attention takes what is beyond a multiple of 16 one by one: on two cores with
#: AMX, passages of 155 tokens on average are 7 to 12 % faster so. Shorter texts gain nothing, and float32 loses.
ROUNDED_FROM, WIDTH_STEP = 96, 16

#: Batches of twice as many texts or more hold a multiple of it: short texts then make a quarter of the shapes. Texts of
#: 8 tokens are encoded in 8 % less time, those of 20 to 60, whose batches are up to a third smaller, in as much.
COUNT_STEP = 16

#: What was prepared for the shapes of earlier batches is kept: in each stream 5,000 pieces of a kind, unless a property
#: of OpenVINO's own says otherwise, and in its oneDNN 1,024 of the process, unless the environment does, which torch's
#: oneDNN goes by too. Texts make hundreds of shapes, so a process grew by 300 MiB over 100,000 short ones. With these
#: limits it stays as it is after some thousand texts, at the same speed; with nothing kept in the streams long texts
#: are 8 % slower, with nothing at all short ones take twice as long.
KEPT_BY_STREAM = {"CPU_RUNTIME_CACHE_CAPACITY": 64}
KEPT_BY_PROCESS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

#: Times the float32 weights that a model takes while an export of it is loaded, and while one is made, and what the
#: libraries and the largest batches take beside. Measured with BERT base on two cores.
LOADED, EXPORTING = 1.25, 5.0
WORKING_BYTES = 512 * 2**20

_TELEMETRY = "openvino_telemetry"


_import_lock = threading.Lock()


def import_openvino() -> ModuleType:
    """The `openvino` package, without its telemetry, keeping few kernels, and ready to be used by several threads.

    Importing it starts a thread that reports the use to Google Analytics and writes an identifier into the
    user's home; where its telemetry package cannot be imported it does neither.
    """
    with _import_lock:
        return _import_openvino()


@functools.cache
def _import_openvino() -> ModuleType:
    import numpy as np

    os.environ.setdefault(*KEPT_BY_PROCESS)
    known = _TELEMETRY in sys.modules
    if not known:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment] # how Python marks a module as not importable
    try:
        import openvino
    finally:
        if not known:
            del sys.modules[_TELEMETRY]
    # The first tensor sets up the binding to numpy. Two threads that do so at once wait for each other for ever:
    # one holds the interpreter's lock, the other a lock of the C++ library's.
    openvino.Tensor(np.zeros((1, 1), np.int64))
    module: ModuleType = openvino
    return module


@functools.cache
def _core() -> Any:
    return import_openvino().Core()


def native_precisions() -> tuple[str, ...]:
    """Precisions that this CPU computes in hardware, fastest first; float32 is always the last."""
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name, capability in _CAPABILITIES.items() if capability in capabilities)


def compiled(model: Path, precision: str, streams: int, **further: object) -> Any:
    """The graph in an .xml, for this CPU, in so many streams of one core each.

    precision  a key of `PRECISION_HINTS`
    further    properties of OpenVINO
    """
    settings = {
        # Without a hint OpenVINO computes in bf16 wherever the chip can.
        "INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision],
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        **KEPT_BY_STREAM,
        **further,
    }
    return _core().compile_model(model, "CPU", settings)


def scaled_to_unit_length(vectors: Vectors, precision: str) -> Vectors:
    """Vectors of a graph that makes them of length 1, which in a reduced precision rounds what it gives."""
    import numpy as np

    if precision == "float32":
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = np.divide(vectors, lengths, out=vectors.copy(), where=lengths > 0)
    return scaled


def padded_width(longest: int, precision: str, max_length: int | None) -> int:
    """How many tokens wide to make a batch whose longest text has `longest`; at most what the model takes."""
    if precision != "bfloat16" or longest < ROUNDED_FROM or max_length is None:
        return longest
    return max(longest, min(max_length, math.ceil(longest / WIDTH_STEP) * WIDTH_STEP))


def openvino_memory(parameters: int, *, exported: bool) -> int:
    """Bytes that a model of so many parameters takes at its highest, where its export is there and where it is not."""
    return int(4 * parameters * (LOADED if exported else EXPORTING)) + WORKING_BYTES


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
        self._streams = physical_cores()
        self._budget = TokenBudget(batch_tokens)
        graph = compiled(model, precision, self._streams)
        self._requests: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(self._streams):
            self._requests.put(graph.create_infer_request())

    def encode(self, texts: Sequence[str], tokenize: Tokenize) -> Vectors:
        """Vectors of shape (n, dimension), float32, in the order given. `tokenize` is called as work proceeds."""
        import numpy as np

        vectors = np.empty((len(texts), self._dimension), dtype=np.float32)
        cut = token_batches(texts, tokenize, self._budget, streams=self._streams, count_step=COUNT_STEP)
        batches = SharedBatches(cut)
        workers = min(self._streams, len(texts))
        if workers < 2:
            self._work(batches, vectors)
        else:
            with ThreadPoolExecutor(workers, thread_name_prefix="encode") as pool:
                for done in [pool.submit(self._work, batches, vectors) for _ in range(workers)]:
                    done.result()
        return vectors

    def close(self) -> None:
        """Frees the graph. Nothing may be encoding."""
        self._requests = queue.LifoQueue()

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
