"""An encoder that costs next to nothing, for measuring everything but the model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.base import Encoder, EngineChoice, Purpose, Vectors
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL


class NullEncoder(Encoder):
    """Random unit vectors of the default model's dimension."""

    def __init__(self) -> None:
        self.spec = describe_model(DEFAULT_TEXT_MODEL)
        self.choice = EngineChoice("null", "cpu", "float32", "a benchmark without a model")
        self._random = np.random.default_rng(0)

    def encode(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Vectors:
        vectors = self._random.normal(size=(len(items), self.spec.dimension)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def close(self) -> None:
        """Nothing to free."""


@contextmanager
def lease_null_encoder(model: str) -> Iterator[Encoder]:
    """Stands in for `EncoderResource.lease`."""
    yield NullEncoder()
