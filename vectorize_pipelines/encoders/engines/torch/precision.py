"""The precision in which the engine `torch` may compute a model here: measured once on each chip, and kept.

A `MeasuredFolder` in `<cache directory>/torch/` holds, beside its own files:

    reference.npy  the model's own float32 vectors of `equality.sample_texts` (`reference.py`)

sentence_transformers and transformers, where they are installed, are imported only while it is made. Called by
`engine.py`.
"""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vectorize_pipelines.encoders.base import Vectors
from vectorize_pipelines.encoders.engines.base import LoadRequest
from vectorize_pipelines.encoders.engines.equality import Agreement, compare, sample_texts
from vectorize_pipelines.encoders.engines.measured_folder import NUMPY_REFERENCE, MeasuredFolder
from vectorize_pipelines.encoders.engines.reference import (
    discard_numpys,
    is_numpys,
    measured_against,
    numpy_reference,
)
from vectorize_pipelines.encoders.errors import EngineRefusedError
from vectorize_pipelines.encoders.hardware.devices import torch_precisions

logger = logging.getLogger(__name__)

#: Part of every key: raised whenever the forward pass, the sample or the files change.
FORWARD_VERSION = 2

#: What a measurement calls the one forward pass of a model.
PART = "text"


def measured_folder(request: LoadRequest) -> MeasuredFolder:
    """Return where what is measured of a model lies. The key is its content: two names of the same weights share it."""
    spec = request.spec
    decisive = f"{FORWARD_VERSION} {spec.max_length} {spec.dimension} {spec.pooling} {spec.normalized}"
    key = f"{spec.revision}-{hashlib.blake2b(decisive.encode(), digest_size=4).hexdigest()}"
    return measured_against(MeasuredFolder(request.cache_directory / "torch" / key, "torch", request.device))


def fastest_equal(request: LoadRequest, encode: Callable[[str, list[str]], Vectors]) -> str:
    """Return the precision to compute in, measured now where it never was on this chip.

    `encode(precision, texts)` returns vectors in a precision. Safe when several processes start at once. Raises
    `EngineRefusedError` where no precision that is wanted makes the model's vectors, or nothing can be kept, and
    `UnknownModelError` where the model cannot be loaded at all.
    """
    folder = measured_folder(request)

    def agreement(precision: str) -> Agreement:
        import numpy as np

        vectors = encode(precision, sample_texts(request.spec.max_length))
        return compare(vectors, np.load(folder.directory / "reference.npy"))

    try:
        write = _write_numpy_reference if is_numpys(folder) else _write_reference
        folder.make(lambda partial: write(request, partial))
        discard_numpys(folder)
        return folder.fastest_equal(PART, request.precision, torch_precisions(request.device), agreement)
    except OSError as error:
        raise EngineRefusedError(f"what is measured of it cannot be kept in {folder.directory}: {error}") from error


def _write_reference(request: LoadRequest, directory: Path) -> dict[str, Any]:
    import numpy as np

    from vectorize_pipelines.encoders.engines.sentence_transformers_encoder import SentenceTransformersEncoder

    logger.info("measuring %s against sentence-transformers; this happens once", request.name)
    encoder = SentenceTransformersEncoder(request, "It is the reference for a measurement.")
    try:
        np.save(directory / "reference.npy", encoder.sample_vectors())
    finally:
        encoder.close()
    return {"model": request.spec.name, "revision": request.spec.revision, "engine": "torch"}


def _write_numpy_reference(request: LoadRequest, directory: Path) -> dict[str, Any]:
    import numpy as np

    logger.info("measuring %s against a forward pass in numpy; this happens once", request.name)
    np.save(directory / "reference.npy", numpy_reference(request).vectors)
    described = {"model": request.spec.name, "revision": request.spec.revision, "engine": "torch"}
    return {**described, "reference": NUMPY_REFERENCE}
