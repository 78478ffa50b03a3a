"""The forward pass of a BERT-like encoder in plain numpy, float32, one text after another.

Slow, and written to be read beside the model's paper: no batches, no padding, no mask, nothing fused. Where
sentence-transformers is not installed its vectors are what the engines are held against (`reference.py`). That it gives
sentence-transformers' own is shown in the tests for every architecture.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.encoders.models.layout import ModelLayout
from vectorize_pipelines.encoders.models.network import Layer, Linear, Network, Norm, distance_buckets

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]


def encode_ids(network: "Network[Array]", layout: ModelLayout, texts: Sequence[Sequence[int]]) -> "Array":
    """Return vectors of texts given as token ids: (texts, dimension). No text may be without tokens."""
    import numpy as np

    return np.stack([_encode(network, layout, np.asarray(ids)) for ids in texts]).astype(np.float32)


def _encode(network: "Network[Array]", layout: ModelLayout, ids: "npt.NDArray[np.int64]") -> "Array":
    """Return the vector of one text."""
    import numpy as np

    hidden = _normed(network.words[ids] + network.positions[_positions(ids, network.padding)], network.embedding_norm)
    bias = _attention_bias(network, len(ids))
    for layer in network.layers:
        hidden = _layer(layer, hidden, bias, network)
    pooled = {"mean": hidden.mean(axis=0), "cls": hidden[0], "max": hidden.max(axis=0)}
    vector = np.concatenate([pooled[mode] for mode in layout.pooling_modes])
    if "Normalize" in layout.modules:
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return vector[: layout.dimension] if layout.truncated else vector


def _positions(ids: "npt.NDArray[np.int64]", padding: int | None) -> "npt.NDArray[np.int64]":
    """Return rows of the table of position embeddings."""
    import numpy as np

    if padding is None:
        return np.arange(len(ids))
    counted = ids != padding
    rows: npt.NDArray[np.int64] = np.cumsum(counted) * counted + padding
    return rows


def _attention_bias(network: "Network[Array]", length: int) -> "Array | float":
    """Return what is added to the scores, (heads, queries, keys): MPNet's bias by distance; 0 elsewhere."""
    import numpy as np

    if network.bias is None:
        return 0.0
    buckets = distance_buckets(len(network.bias), length)
    place = np.arange(length)
    by_distance: Array = network.bias[buckets[place[None, :] - place[:, None] + length - 1]]
    return by_distance.transpose(2, 0, 1)


def _layer(layer: "Layer[Array]", hidden: "Array", bias: "Array | float", network: "Network[Array]") -> "Array":
    attended = _attention(layer, hidden, bias, network.heads)
    hidden = _normed(attended + hidden, layer.attention_norm)
    fed = _linear(_activated(_linear(hidden, layer.up), network.activation), layer.down)
    return _normed(fed + hidden, layer.output_norm)


def _attention(layer: "Layer[Array]", hidden: "Array", bias: "Array | float", heads: int) -> "Array":
    """Let every token look at every token of its text."""
    import numpy as np

    def by_head(values: "Array") -> "Array":
        return values.reshape(len(values), heads, -1).transpose(1, 0, 2)

    query, key, value = (by_head(_linear(hidden, each)) for each in (layer.query, layer.key, layer.value))
    scores = query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(query.shape[-1])) + bias
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return _linear((weights @ value).transpose(1, 0, 2).reshape(hidden.shape), layer.attention_out)


def _activated(values: "Array", name: str) -> "Array":
    """Apply the function for a value of `network.ACTIVATIONS`."""
    import numpy as np

    activated: Array
    if name == "gelu":
        activated = values * (1 + erf(values / np.float32(np.sqrt(2)))) / 2
    elif name == "gelu_tanh":
        inner = np.float32(np.sqrt(2 / np.pi)) * (values + np.float32(0.044715) * values**3)
        activated = values * (1 + np.tanh(inner)) / 2
    elif name == "relu":
        activated = np.maximum(values, 0)
    else:
        activated = values / (1 + np.exp(-values))  # silu
    return activated


def erf(values: "Array") -> "Array":
    """Return the error function, as near as float32 rounds: Abramowitz and Stegun, 7.1.26, off by 1.5e-7 at most."""
    import numpy as np

    size = np.abs(values)
    step = 1 / (1 + np.float32(0.3275911) * size)
    factors = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    polynomial = np.zeros_like(step)
    for factor in factors:
        polynomial = (polynomial + np.float32(factor)) * step
    result: Array = np.sign(values) * (1 - polynomial * np.exp(-(size**2)))
    return result


def _linear(values: "Array", layer: "Linear[Array]") -> "Array":
    return values @ layer.weight.T + layer.bias


def _normed(values: "Array", norm: "Norm[Array]") -> "Array":
    import numpy as np

    centred = values - values.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    normed: Array = centred / np.sqrt(variance + np.float32(norm.eps)) * norm.weight + norm.bias
    return normed
