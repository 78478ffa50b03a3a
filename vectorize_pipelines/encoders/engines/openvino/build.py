"""OpenVINO's graph of a BERT-like encoder, made operation by operation from its weights: no torch, no tracing.

What an export is made from where sentence-transformers is not installed. It has the inputs and the output of a traced
graph: token ids and attention mask, (texts, tokens) each, to vectors, (texts, dimension).
"""

from typing import TYPE_CHECKING, Any

from vectorize_pipelines.encoders.engines.openvino_runtime import import_openvino
from vectorize_pipelines.encoders.models.layout import ModelLayout
from vectorize_pipelines.encoders.models.network import Layer, Linear, Network, Norm, distance_buckets

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]


def build_graph(network: "Network[Array]", layout: ModelLayout) -> Any:
    """Return the `openvino.Model`, pooling and normalisation included."""
    return _Builder(network, layout).model()


class _Builder:
    """A builder that puts operations together. Methods take and return outputs of shape (texts, tokens, hidden)."""

    def __init__(self, network: "Network[Array]", layout: ModelLayout) -> None:
        import numpy as np

        self._openvino = import_openvino()
        from openvino import opset13

        self._ops: Any = opset13
        self._network = network
        self._layout = layout
        self._ids = self._ops.parameter([-1, -1], np.int64, name="input_ids")
        self._mask = self._ops.parameter([-1, -1], np.int64, name="attention_mask")
        self._attended = self._attention_mask()

    def model(self) -> Any:
        ops = self._ops
        hidden = self._embedded()
        for layer in self._network.layers:
            hidden = self._layer(layer, hidden)
        pooled = [self._pooled(hidden, mode) for mode in self._layout.pooling_modes]
        vectors = ops.concat(pooled, 1) if len(pooled) > 1 else pooled[0]
        if "Normalize" in self._layout.modules:
            lengths = ops.reduce_l2(vectors, self._constant([1]), keep_dims=True)
            vectors = ops.divide(vectors, ops.maximum(lengths, self._constant(1e-12)))
        if self._layout.truncated:
            cut = [self._constant([number]) for number in (0, self._layout.dimension, 1, 1)]
            vectors = ops.slice(vectors, *cut)
        return self._openvino.Model([ops.result(vectors)], [self._ids, self._mask], "encoder")

    def _constant(self, value: Any) -> Any:
        """Return whole numbers as int64, others as float32."""
        import numpy as np

        array = np.asarray(value)
        whole = np.issubdtype(array.dtype, np.integer)
        return self._ops.constant(array.astype(np.int64 if whole else np.float32))

    def _token_count(self) -> Any:
        return self._ops.gather(self._ops.shape_of(self._ids), self._constant(1), self._constant(0))

    def _places(self) -> Any:
        """Return 0, 1, 2, … for the tokens of a row."""
        return self._ops.range(self._constant(0), self._token_count(), self._constant(1), "i64")

    def _embedded(self) -> Any:
        ops, network = self._ops, self._network
        words = ops.gather(self._constant(network.words), self._ids, self._constant(0))
        if network.padding is None:
            rows = self._places()
        else:
            counted = ops.convert(ops.not_equal(self._ids, self._constant(network.padding)), "i64")
            counts = ops.multiply(ops.cum_sum(counted, self._constant(1)), counted)
            rows = ops.add(counts, self._constant(network.padding))
        positions = ops.gather(self._constant(network.positions), rows, self._constant(0))
        return self._normed(ops.add(words, positions), network.embedding_norm)

    def _attention_mask(self) -> Any:
        """Return what scores of attention take: which keys are there, or MPNet's bias with -inf where there is none."""
        import numpy as np

        ops, bias = self._ops, self._network.bias
        there = ops.unsqueeze(ops.convert(self._mask, "boolean"), self._constant([1, 2]))
        if bias is None:
            return there
        longest = len(self._network.positions)
        table = bias[distance_buckets(len(bias), longest)]
        places = self._places()
        distance = ops.subtract(ops.unsqueeze(places, self._constant([0])), ops.unsqueeze(places, self._constant([1])))
        rows = ops.add(distance, self._constant(longest - 1))
        by_distance = ops.gather(self._constant(table), rows, self._constant(0))
        heads_first = ops.unsqueeze(ops.transpose(by_distance, self._constant([2, 0, 1])), self._constant([0]))
        return ops.select(there, heads_first, self._constant(float(np.finfo(np.float32).min)))

    def _layer(self, layer: "Layer[Array]", hidden: Any) -> Any:
        ops = self._ops
        hidden = self._normed(ops.add(self._attention(layer, hidden), hidden), layer.attention_norm)
        fed = self._linear(self._activated(self._linear(hidden, layer.up)), layer.down)
        return self._normed(ops.add(fed, hidden), layer.output_norm)

    def _attention(self, layer: "Layer[Array]", hidden: Any) -> Any:
        ops = self._ops
        query, key, value = (self._by_head(hidden, each) for each in (layer.query, layer.key, layer.value))
        attended = ops.scaled_dot_product_attention(query, key, value, self._attended)
        tokens_first = ops.transpose(attended, self._constant([0, 2, 1, 3]))
        return self._linear(
            ops.reshape(tokens_first, self._constant([0, 0, -1]), special_zero=True), layer.attention_out
        )

    def _by_head(self, hidden: Any, layer: "Linear[Array]") -> Any:
        """Return the projection as (texts, heads, tokens, hidden / heads)."""
        heads = self._network.heads
        shape = self._constant([0, 0, heads, len(layer.weight) // heads])
        projected = self._ops.reshape(self._linear(hidden, layer), shape, special_zero=True)
        return self._ops.transpose(projected, self._constant([0, 2, 1, 3]))

    def _activated(self, values: Any) -> Any:
        """Apply the function for a value of `network.ACTIVATIONS`."""
        ops = self._ops
        made = {
            "gelu": lambda: ops.gelu(values, "erf"),
            "gelu_tanh": lambda: ops.gelu(values, "tanh"),
            "relu": lambda: ops.relu(values),
            "silu": lambda: ops.swish(values),
        }
        return made[self._network.activation]()

    def _pooled(self, hidden: Any, mode: str) -> Any:
        """Return the pooled vectors, (texts, hidden)."""
        import numpy as np

        ops, tokens = self._ops, self._constant([1])
        if mode == "cls":
            return ops.gather(hidden, self._constant(0), self._constant(1))
        there = ops.unsqueeze(ops.convert(self._mask, "f32"), self._constant([-1]))
        if mode == "max":
            lowest = self._constant(float(np.finfo(np.float32).min))
            return ops.reduce_max(ops.select(ops.convert(there, "boolean"), hidden, lowest), tokens)
        total = ops.reduce_sum(ops.multiply(hidden, there), tokens)
        return ops.divide(total, ops.maximum(ops.reduce_sum(there, tokens), self._constant(1e-9)))

    def _linear(self, values: Any, layer: "Linear[Array]") -> Any:
        product = self._ops.matmul(values, self._constant(layer.weight), False, True)
        return self._ops.add(product, self._constant(layer.bias))

    def _normed(self, values: Any, norm: "Norm[Array]") -> Any:
        ops = self._ops
        scaled = ops.mvn(values, self._constant([-1]), True, norm.eps, "INSIDE_SQRT")
        return ops.add(ops.multiply(scaled, self._constant(norm.weight)), self._constant(norm.bias))
