"""Vectors cut to fewer dimensions, for models whose first dimensions stand alone (Matryoshka). Works with any engine.

As `SentenceTransformer(truncate_dim=…).encode(…, normalize_embeddings=True)`: the first dimensions of the model's
vector, scaled to unit length. Called by `load_encoder`, `lease_encoder` and `describe_model`; `cut` by
the HTTP server, too, whose callers share an encoder.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vectorize_pipelines.encoders.base import Encoder, EncoderSpec, Metered, Purpose, Vectors
from vectorize_pipelines.errors import ItemError, SettingsError

#: `torch.nn.functional.normalize` divides by no less.
SMALLEST_NORM = 1e-12


def truncated_spec(spec: EncoderSpec, dimension: int | None) -> EncoderSpec:
    """The spec of a model whose vectors are cut to `dimension`; None, or the model's own, leaves it as it is.

    Raises `SettingsError` for a dimension that the model has not.
    """
    if dimension is None or dimension == spec.dimension:
        return spec
    if not 1 <= dimension < spec.dimension:
        raise SettingsError(
            f"{spec.name} gives vectors of {spec.dimension} dimensions, which cannot be cut to {dimension}; "
            f"choose 1 to {spec.dimension}"
        )
    return replace(spec, dimension=dimension, normalized=True)


def truncated(encoder: Encoder, dimension: int | None) -> Encoder:
    """`encoder` with vectors cut to `dimension`; itself where nothing is to be cut. Raises `SettingsError`."""
    spec = truncated_spec(encoder.spec, dimension)
    return encoder if spec == encoder.spec else TruncatedEncoder(encoder, spec)


def cut(vectors: Vectors, dimension: int) -> Vectors:
    """The first dimensions of vectors, scaled to unit length."""
    import numpy as np

    kept = vectors[:, :dimension]
    norms = np.linalg.norm(kept, axis=1, keepdims=True)
    return np.ascontiguousarray(kept / np.maximum(norms, SMALLEST_NORM), dtype=np.float32)


class TruncatedEncoder(Encoder):
    """An encoder's vectors cut to the dimension of `spec`. Closing it closes the encoder."""

    def __init__(self, encoder: Encoder, spec: EncoderSpec) -> None:
        self.spec = spec
        self.choice = encoder.choice
        self._encoder = encoder

    def encode(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Vectors:
        return cut(self._encoder.encode(items, purpose), self.spec.dimension)

    def encode_each(
        self, items: Sequence[str | Path | bytes], purpose: Purpose = "document"
    ) -> tuple[Vectors, dict[int, ItemError]]:
        vectors, failures = self._encoder.encode_each(items, purpose)
        return cut(vectors, self.spec.dimension), failures

    def encode_metered(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Metered:
        metered = self._encoder.encode_metered(items, purpose)
        return replace(metered, vectors=cut(metered.vectors, self.spec.dimension))

    def count_tokens(self, texts: Sequence[str], purpose: Purpose = "document") -> list[int]:
        return self._encoder.count_tokens(texts, purpose)

    @property
    def streams(self) -> int:
        return self._encoder.streams

    @property
    def memory_bytes(self) -> int:
        return self._encoder.memory_bytes

    def close(self) -> None:
        self._encoder.close()
