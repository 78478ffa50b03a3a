"""OpenVINO itself: compiling graphs for this CPU, its precisions, and the memory that models take.

Used by the engines that run graphs, `openvino` and `open_clip`. Whoever needs the
library gets it by `import_openvino`, which limits what it keeps.
"""

import functools
import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from vectorize_pipelines.encoders.base import Vectors

#: What OpenVINO calls a precision.
PRECISION_HINTS = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}

#: Capability of a CPU that computes so in hardware.
_CAPABILITIES = {"bfloat16": "BF16", "float16": "FP16", "float32": "FP32"}

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
    """Return the `openvino` package, without its telemetry, keeping few kernels, and ready for several threads.

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
    """Return the precisions that this CPU computes in hardware, fastest first; float32 is always the last."""
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name, capability in _CAPABILITIES.items() if capability in capabilities)


def compiled(model: Path, precision: str, streams: int, **further: object) -> Any:
    """Return the graph in an .xml, for this CPU, in so many streams of one core each.

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
    """Scale the vectors of a graph to length 1, since in a reduced precision it rounds what it returns."""
    import numpy as np

    if precision == "float32":
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = np.divide(vectors, lengths, out=vectors.copy(), where=lengths > 0)
    return scaled


def openvino_memory(parameters: int, *, exported: bool) -> int:
    """Return the bytes that a model of so many parameters takes at its highest, with its export there and without."""
    return int(4 * parameters * (LOADED if exported else EXPORTING)) + WORKING_BYTES
