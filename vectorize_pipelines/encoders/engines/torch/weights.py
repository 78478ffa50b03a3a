"""The weights of a BERT-like encoder as torch computes with them: on a device, in a precision.

`models/network.py` reads them; `forward.py` computes. Called by the engine `torch`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.encoders.models import network

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: weight (out, in), bias (out,)."""

    weight: "torch.Tensor"
    bias: "torch.Tensor"

    def to(self, device: str, dtype: "torch.dtype") -> "Linear":
        """Return the same on a device, in a precision."""
        return Linear(self.weight.to(device, dtype), self.bias.to(device, dtype))


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm: weight and bias (hidden,)."""

    weight: "torch.Tensor"
    bias: "torch.Tensor"
    eps: float

    def to(self, device: str) -> "Norm":
        """Return the same on a device, in float32."""
        return Norm(self.weight.to(device), self.bias.to(device), self.eps)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer, in which query, key and value are one matrix: (3 hidden, hidden)."""

    attention_in: Linear
    attention_out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm

    def to(self, device: str, dtype: "torch.dtype") -> "Layer":
        """Return the same on a device, linear layers in a precision."""
        return Layer(
            attention_in=self.attention_in.to(device, dtype),
            attention_out=self.attention_out.to(device, dtype),
            attention_norm=self.attention_norm.to(device),
            up=self.up.to(device, dtype),
            down=self.down.to(device, dtype),
            output_norm=self.output_norm.to(device),
        )


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """An encoder's weights and the little that they do not show.

    words       (vocabulary, hidden)
    positions   (positions, hidden); the embedding of the only token type that a single text has is part of it
    heads       of the attention
    activation  a value of `network.ACTIVATIONS`
    padding     None: positions count from 0; else they count from behind this token, skipping it
    bias        (buckets, heads): added to the attention by distance, as MPNet does; None elsewhere
    """

    words: "torch.Tensor"
    positions: "torch.Tensor"
    embedding_norm: Norm
    layers: tuple[Layer, ...]
    heads: int
    activation: str
    padding: int | None
    bias: "torch.Tensor | None"

    def to(self, device: str, dtype: "torch.dtype") -> "EncoderWeights":
        """Return the same on a device; positions and norms, being small, stay float32. What is there is not copied."""
        return EncoderWeights(
            words=self.words.to(device, dtype),
            positions=self.positions.to(device),
            embedding_norm=self.embedding_norm.to(device),
            layers=tuple(layer.to(device, dtype) for layer in self.layers),
            heads=self.heads,
            activation=self.activation,
            padding=self.padding,
            bias=None if self.bias is None else self.bias.to(device, dtype),
        )

    @property
    def memory_bytes(self) -> int:
        """The bytes that the weights take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(self))


def read_weights(directory: Path) -> EncoderWeights:
    """Return the encoder in `directory`, float32, in main memory.

    Raises `safetensors.SafetensorError` or `OSError` for a file that is damaged, and `KeyError` naming what is missing.
    """
    found = network.read_network(directory, _load)
    return EncoderWeights(
        words=found.words,
        positions=found.positions,
        embedding_norm=_norm(found.embedding_norm),
        layers=tuple(_layer(each) for each in found.layers),
        heads=found.heads,
        activation=found.activation,
        padding=found.padding,
        bias=found.bias,
    )


def _tensors(structure: Any) -> "Iterator[torch.Tensor]":
    import torch

    if isinstance(structure, torch.Tensor):
        yield structure
    elif isinstance(structure, tuple):
        for each in structure:
            yield from _tensors(each)
    elif is_dataclass(structure):
        for each in fields(structure):
            yield from _tensors(getattr(structure, each.name))


def _load(path: Path) -> "dict[str, torch.Tensor]":
    from safetensors.torch import load_file

    return {name: tensor.float() for name, tensor in load_file(path).items()}


def _layer(layer: "network.Layer[torch.Tensor]") -> Layer:
    import torch

    projections = (layer.query, layer.key, layer.value)
    return Layer(
        attention_in=Linear(
            torch.cat([each.weight for each in projections]), torch.cat([each.bias for each in projections])
        ),
        attention_out=_linear(layer.attention_out),
        attention_norm=_norm(layer.attention_norm),
        up=_linear(layer.up),
        down=_linear(layer.down),
        output_norm=_norm(layer.output_norm),
    )


def _linear(layer: "network.Linear[torch.Tensor]") -> Linear:
    return Linear(layer.weight, layer.bias)


def _norm(norm: "network.Norm[torch.Tensor]") -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps)
