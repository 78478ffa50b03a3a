"""Encoders without a model."""

import numpy as np

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.encoders import Encoder, EncoderSpec, EngineChoice
from vectorize_pipelines.encoders.base import Vectors


class StubEncoder(Encoder):
    """An encoder without a model."""

    def __init__(self, reason: str = "") -> None:
        self.spec = EncoderSpec("stub", "0" * 12, 2, None, "mean", "", "", frozenset({Modality.TEXT}), True)
        self.choice = EngineChoice("stub", "cpu", "float32", reason)
        self.closed = False

    def encode(self, items: object, purpose: str = "document") -> Vectors:
        return np.zeros((0, 2), dtype=np.float32)

    @property
    def memory_bytes(self) -> int:
        return 10

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True
