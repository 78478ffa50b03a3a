"""The forward pass of a BERT-like encoder over packed tokens: texts one after another, without padding between them.

Everything but attention looks at single tokens, so embeddings, linear layers and layer norms run on one
(tokens, hidden) matrix. A reduced precision is that of the linear layers and of attention; what is passed from layer to
layer, layer norms and pooling are float32. Attention is computed in one of two ways:

- *varlen*: torch's variable-length flash attention, on CUDA from compute capability 8.0, in bfloat16 and float16;
- *padded*: elsewhere, and for MPNet, whose bias the former cannot add: the projections are spread over a
  (texts, longest) grid, scaled dot-product attention masks what is empty, and the result is packed again. Texts in a
  batch are of nearly the same length, so little is wasted.

That this returns the model's own vectors is shown in the tests for every architecture, and for every model by
`precision.py` before it is used. Made by the engine `torch`, called by `pipeline.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.encoders.batching import TokenBatch
from vectorize_pipelines.encoders.engines.torch.weights import EncoderWeights, Layer, Linear, Norm
from vectorize_pipelines.encoders.hardware.devices import device_kind
from vectorize_pipelines.encoders.models.layout import ModelLayout
from vectorize_pipelines.encoders.models.network import FARTHEST, Shape

if TYPE_CHECKING:
    import torch

#: Flash attention of torch needs this compute capability, and heads of at most so many numbers, a multiple of 8.
VARLEN_CAPABILITY = (8, 0)
VARLEN_LARGEST_HEAD = 256


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """Texts one after another. One int32 tensor, so that a batch is one copy to the device.

    numbers  ids (tokens), positions (tokens), places (tokens), starts (texts + 1), one behind the other
    texts    how many
    tokens   of all texts together
    longest  tokens of the longest text
    """

    numbers: "torch.Tensor"
    texts: int
    tokens: int
    longest: int

    @property
    def ids(self) -> "torch.Tensor":
        """The token ids, (tokens,)."""
        return self.numbers[: self.tokens]

    @property
    def positions(self) -> "torch.Tensor":
        """Rows of the table of position embeddings, (tokens,)."""
        return self.numbers[self.tokens : 2 * self.tokens]

    @property
    def places(self) -> "torch.Tensor":
        """The place of each token in a grid of (texts, longest), (tokens,)."""
        return self.numbers[2 * self.tokens : 3 * self.tokens]

    @property
    def starts(self) -> "torch.Tensor":
        """The place where each text begins, and behind the last one, (texts + 1,)."""
        return self.numbers[3 * self.tokens :]

    def on(self, numbers: "torch.Tensor") -> "PackedTokens":
        """Return the same tokens with `numbers` on another device."""
        return replace(self, numbers=numbers)


def pack(batch: TokenBatch, padding: int | None) -> PackedTokens:
    """Return a batch in main memory. No text may be empty.

    padding  as in `EncoderWeights`
    """
    import numpy as np
    import torch

    lengths = np.array([len(ids) for ids in batch.ids])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([np.array(ids, dtype=np.int32) for ids in batch.ids])
    rows = np.repeat(np.arange(len(lengths)), lengths)
    columns = np.arange(len(ids)) - starts[rows]
    longest = int(lengths.max())
    positions = columns
    if padding is not None:
        counted = ids != padding
        before = np.concatenate([[0], np.cumsum(counted)])
        positions = (before[1:] - before[starts[rows]]) * counted + padding
    numbers = np.concatenate([ids, positions, rows * longest + columns, starts], dtype=np.int32, casting="same_kind")
    return PackedTokens(torch.from_numpy(numbers), len(lengths), len(ids), longest)


class PackedForward:
    """A forward pass from packed tokens to vectors, all on one device. Thread-safe.

    weights     on the device, in the precision to compute in
    pooling     some of `network.POOLING_MODES`; their results are put side by side
    normalized  whether vectors are scaled to unit length
    dimension   to which vectors are cut
    """

    def __init__(self, weights: EncoderWeights, *, pooling: tuple[str, ...], normalized: bool, dimension: int) -> None:
        self.weights = weights
        self._pooling = pooling
        self._normalized = normalized
        self._dimension = dimension
        self._activation = activation(weights.activation)
        self.attention = "varlen" if runs_varlen(weights) else "padded"

    def __call__(self, tokens: PackedTokens) -> "torch.Tensor":
        """Return vectors of shape (texts, dimension), float32, on the device of `tokens`."""
        import torch
        from torch.nn.functional import normalize

        with torch.inference_mode():
            hidden = self._hidden(tokens)
            pooled = torch.cat([_pooled(hidden, tokens, mode) for mode in self._pooling], dim=1)
            vectors = normalize(pooled, dim=1) if self._normalized else pooled
            return vectors[:, : self._dimension].contiguous()

    def _hidden(self, tokens: PackedTokens) -> "torch.Tensor":
        from torch.nn.functional import embedding

        weights = self.weights
        embedded = embedding(tokens.ids, weights.words) + embedding(tokens.positions, weights.positions)
        hidden = _normed(embedded, weights.embedding_norm)
        attend = self._attention(tokens)
        for layer in weights.layers:
            hidden = self._layer(layer, hidden, attend)
        return hidden

    def _layer(
        self, layer: Layer, hidden: "torch.Tensor", attend: "Callable[[torch.Tensor], torch.Tensor]"
    ) -> "torch.Tensor":
        """Run a layer. `hidden` is float32 in and out: summed in bfloat16 it would be off by three times as much."""
        precision = self.weights.words.dtype
        attended = _linear(attend(_linear(hidden.to(precision), layer.attention_in)), layer.attention_out)
        hidden = _normed(attended + hidden, layer.attention_norm)
        fed = _linear(self._activation(_linear(hidden.to(precision), layer.up)), layer.down)
        return _normed(fed + hidden, layer.output_norm)

    def _attention(self, tokens: PackedTokens) -> "Callable[[torch.Tensor], torch.Tensor]":
        """Return the attention from query, key and value, (tokens, 3 hidden), to its result, (tokens, hidden)."""
        if self.attention == "varlen":
            return lambda projected: varlen_attention(projected, tokens, self.weights.heads)
        mask = attention_mask(tokens, self.weights)
        return lambda projected: padded_attention(projected, tokens, self.weights.heads, mask)


def packed_forward(layout: ModelLayout, weights: EncoderWeights, device: str, precision: str) -> PackedForward:
    """Return the forward pass of the model that `layout` describes, on `device`; `precision` names a type of torch."""
    import torch

    return PackedForward(
        weights.to(device, getattr(torch, precision)),
        pooling=layout.pooling_modes,
        normalized="Normalize" in layout.modules,
        dimension=layout.dimension,
    )


def activation_bytes(shape: Shape, tokens: int, width: int) -> int:
    """Return the bytes that a batch takes at its highest, in feed-forward or attention, `width` bytes a number.

    Attention counts as if its scores were held, which they are where torch has no fused kernel for it.
    """
    passed_on = 2 * 4 * shape.hidden  # float32: what goes into a layer, and the sum that comes out
    attention = width * (8 * shape.hidden + 2 * shape.heads * min(shape.positions, tokens))
    feed_forward = width * (shape.hidden + 2 * shape.intermediate)
    return tokens * (passed_on + max(attention, feed_forward))


def activation(name: str) -> "Callable[[torch.Tensor], torch.Tensor]":
    """Return the function for a value of `network.ACTIVATIONS`."""
    from torch.nn.functional import gelu, relu, silu

    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "gelu": gelu,
        "gelu_tanh": lambda values: gelu(values, approximate="tanh"),
        "relu": relu,
        "silu": silu,
    }
    return functions[name]


def runs_varlen(weights: EncoderWeights) -> bool:
    """Return whether torch's variable-length attention takes these weights on their device."""
    import torch

    words = weights.words
    head = words.shape[1] // weights.heads
    return (
        device_kind(str(words.device)) == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(words.device) >= VARLEN_CAPABILITY
        and words.dtype in {torch.bfloat16, torch.float16}
        and weights.bias is None
        and head % 8 == 0
        and head <= VARLEN_LARGEST_HEAD
        and _has_varlen()
    )


def _has_varlen() -> bool:
    """Return whether torch has it, as from 2.10 on."""
    from importlib.util import find_spec

    return find_spec("torch.nn.attention.varlen") is not None


def varlen_attention(projected: "torch.Tensor", tokens: PackedTokens, heads: int) -> "torch.Tensor":
    """Let each text attend to itself alone, by its start in the packed tokens."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = projected.view(tokens.tokens, 3, heads, -1).unbind(1)
    # cuDNN, which torch would prefer on some chips, makes a plan for every new shape, and here every batch is one.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        attended: Any = varlen_attn(query, key, value, tokens.starts, tokens.starts, tokens.longest, tokens.longest)
    packed: torch.Tensor = attended.reshape(tokens.tokens, -1)
    return packed


def padded_attention(
    projected: "torch.Tensor", tokens: PackedTokens, heads: int, mask: "torch.Tensor | None"
) -> "torch.Tensor":
    """Let each text attend on a grid of (texts, longest); `mask` keeps attention from what is empty."""
    from torch.nn.functional import scaled_dot_product_attention

    places = tokens.places
    full = tokens.tokens == tokens.texts * tokens.longest
    grid = projected if full else _spread(projected, tokens)
    query, key, value = grid.view(tokens.texts, tokens.longest, 3, heads, -1).permute(2, 0, 3, 1, 4)
    attended = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    rows = attended.transpose(1, 2).reshape(tokens.texts * tokens.longest, -1)
    return rows if full else rows.index_select(0, places)


def attention_mask(tokens: PackedTokens, weights: EncoderWeights) -> "torch.Tensor | None":
    """Return what is added to the scores: (texts, 1 or heads, 1 or longest, longest); None where it would be zero."""
    import torch

    full = tokens.tokens == tokens.texts * tokens.longest
    words = weights.words
    bias = None if weights.bias is None else distance_bias(weights.bias, tokens.longest)
    if full:
        return bias
    there = torch.zeros(tokens.texts * tokens.longest, dtype=torch.bool, device=words.device)
    there = there.index_fill_(0, tokens.places.long(), True).view(tokens.texts, 1, 1, tokens.longest)
    return there if bias is None else bias.masked_fill(~there, float("-inf"))


def distance_bias(bias: "torch.Tensor", longest: int) -> "torch.Tensor":
    """Return MPNet's bias by distance: (1, heads, longest, longest). As `MPNetEncoder.compute_position_bias`."""
    import math

    import torch

    buckets = bias.shape[0] // 2
    near = buckets // 2
    place = torch.arange(longest, device=bias.device)
    behind = place[:, None] - place[None, :]
    distance = behind.abs()
    far = near + (torch.log(distance.float() / near) / math.log(FARTHEST / near) * (buckets - near)).long()
    bucket = torch.where(distance < near, distance, far.clamp(max=buckets - 1)) + (behind < 0) * buckets
    return bias[bucket].permute(2, 0, 1).unsqueeze(0)


def _spread(packed: "torch.Tensor", tokens: PackedTokens) -> "torch.Tensor":
    """Spread (tokens, width) to (texts * longest, width), zero where there is no token."""
    grid = packed.new_zeros(tokens.texts * tokens.longest, packed.shape[1])
    return grid.index_copy_(0, tokens.places.long(), packed)


def _pooled(hidden: "torch.Tensor", tokens: PackedTokens, mode: str) -> "torch.Tensor":
    """Return one row for each text, float32: (texts, hidden)."""
    if mode == "cls":
        return hidden.index_select(0, tokens.starts[:-1])
    rows = (tokens.places // tokens.longest).long()
    zeros = hidden.new_zeros(tokens.texts, hidden.shape[1])
    if mode == "max":
        return zeros.scatter_reduce(0, rows[:, None].expand_as(hidden), hidden, "amax", include_self=False)
    return zeros.index_add_(0, rows, hidden) / tokens.starts.diff()[:, None]


def _linear(values: "torch.Tensor", layer: Linear) -> "torch.Tensor":
    from torch.nn.functional import linear

    return linear(values, layer.weight, layer.bias)


def _normed(values: "torch.Tensor", norm: Norm) -> "torch.Tensor":
    from torch.nn.functional import layer_norm

    return layer_norm(values, norm.weight.shape, norm.weight, norm.bias, norm.eps)
