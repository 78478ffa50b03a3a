"""Reading a BERT-like encoder from config.json and safetensors, without transformers.

BERT, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT and MPNet are one network: embeddings, then layers of
self-attention and feed-forward, each followed by a residual connection and a layer norm. They differ in names, in how
positions are counted, and MPNet in a bias on the attention. Here they become one structure; `torch_forward.py`
computes with it. Called by the engine `torch`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.encoders.layout import DEFAULT_POSITIONS, read_json

if TYPE_CHECKING:
    import torch

#: What the configuration classes of transformers take where config.json does not say.
DEFAULT_HIDDEN = 768
DEFAULT_INTERMEDIATE = 3072
DEFAULT_HEADS = 12
DEFAULT_LAYER_NORM_EPS = 1e-12

#: Names in config.json -> what `torch_forward.activation` knows.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """What one `model_type` calls the parts.

    prefix          in front of every name in checkpoints of a model with a head
    layer           in front of a layer's names; `{}` is its number
    attention       query, key, value, output
    attention_norm  layer norm after the attention
    feed_forward    up, down
    output_norm     layer norm after the feed-forward
    hidden, intermediate, heads, activation  names in config.json
    padding         None: positions count from 0; else they count from behind this token, skipping it, unless
                    config.json names another one
    """

    prefix: str
    layer: str = "encoder.layer.{}."
    attention: tuple[str, str, str, str] = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    )
    attention_norm: str = "attention.output.LayerNorm"
    feed_forward: tuple[str, str] = ("intermediate.dense", "output.dense")
    output_norm: str = "output.LayerNorm"
    hidden: str = "hidden_size"
    intermediate: str = "intermediate_size"
    heads: str = "num_attention_heads"
    activation: str = "hidden_act"
    padding: int | None = None


_ROBERTA = Architecture(prefix="roberta.", padding=1)

ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture(prefix="bert."),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Architecture(
        prefix="distilbert.",
        layer="transformer.layer.{}.",
        attention=("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        attention_norm="sa_layer_norm",
        feed_forward=("ffn.lin1", "ffn.lin2"),
        output_norm="output_layer_norm",
        hidden="dim",
        intermediate="hidden_dim",
        heads="n_heads",
        activation="activation",
    ),
    "mpnet": Architecture(
        prefix="mpnet.",
        attention=("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
        attention_norm="attention.LayerNorm",
        padding=1,
    ),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Numbers that a token has between layers and inside the feed-forward, attention heads, and longest text."""

    hidden: int
    intermediate: int
    heads: int
    positions: int


@dataclass(frozen=True, slots=True)
class Linear:
    """weight (out, in), bias (out,)"""

    weight: "torch.Tensor"
    bias: "torch.Tensor"

    def to(self, device: str, dtype: "torch.dtype") -> "Linear":
        """The same on a device, in a precision."""
        return Linear(self.weight.to(device, dtype), self.bias.to(device, dtype))


@dataclass(frozen=True, slots=True)
class Norm:
    """weight and bias (hidden,)"""

    weight: "torch.Tensor"
    bias: "torch.Tensor"
    eps: float

    def to(self, device: str) -> "Norm":
        """The same on a device, in float32."""
        return Norm(self.weight.to(device), self.bias.to(device), self.eps)


@dataclass(frozen=True, slots=True)
class Layer:
    """query, key and value are one matrix: (3 hidden, hidden)"""

    attention_in: Linear
    attention_out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm

    def to(self, device: str, dtype: "torch.dtype") -> "Layer":
        """The same on a device, linear layers in a precision."""
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
    activation  a value of `ACTIVATIONS`
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
        """The same on a device; positions and norms, which are small, stay float32. What is there is not copied."""
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
        """What the weights take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(self))


def refusal(directory: Path) -> str | None:
    """Why the encoder in `directory` is not one that this module reads; None if it may be. Reads no weights."""
    config = read_json(directory / "config.json")
    kind = str(config.get("model_type", ""))
    if kind not in ARCHITECTURES:
        return (
            f"it does not cover the architecture {kind or 'without model_type'} (it covers {', '.join(ARCHITECTURES)})"
        )
    activation = config.get(ARCHITECTURES[kind].activation, "gelu")
    if activation not in ACTIVATIONS:
        return f"it does not cover the activation {activation}"
    if config.get("position_embedding_type", "absolute") != "absolute":
        return f"it does not cover {config['position_embedding_type']} positions"
    if config.get("is_decoder"):
        return "it does not cover decoders"
    if not _weight_files(directory):
        return f"it reads safetensors, and {directory} has none"
    return None


def shape(directory: Path) -> Shape:
    """The shape of the encoder in `directory`. Reads no weights."""
    config = read_json(directory / "config.json")
    architecture = ARCHITECTURES[str(config["model_type"])]
    return Shape(
        hidden=int(config.get(architecture.hidden, DEFAULT_HIDDEN)),
        intermediate=int(config.get(architecture.intermediate, DEFAULT_INTERMEDIATE)),
        heads=int(config.get(architecture.heads, DEFAULT_HEADS)),
        positions=int(config.get("max_position_embeddings", DEFAULT_POSITIONS)),
    )


def read_weights(directory: Path) -> EncoderWeights:
    """The encoder in `directory`, float32, in main memory.

    Raises `safetensors.SafetensorError` or `OSError` for a file that is damaged, and `KeyError` naming what is missing.
    """
    config = read_json(directory / "config.json")
    architecture = ARCHITECTURES[str(config["model_type"])]
    found = _read_tensors(directory, architecture.prefix)
    eps = float(config.get("layer_norm_eps", DEFAULT_LAYER_NORM_EPS))
    return EncoderWeights(
        words=found["embeddings.word_embeddings.weight"],
        positions=_positions(found),
        embedding_norm=_norm(found, "embeddings.LayerNorm", eps),
        layers=tuple(_layers(found, architecture, eps)),
        heads=int(config.get(architecture.heads, DEFAULT_HEADS)),
        activation=ACTIVATIONS[config.get(architecture.activation, "gelu")],
        padding=_padding(architecture, config),
        bias=found.get("encoder.relative_attention_bias.weight"),
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


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model: one, or those that an index lists."""
    whole = directory / "model.safetensors"
    if whole.is_file():
        return [whole]
    parts = read_json(directory / "model.safetensors.index.json", required=False).get("weight_map", {})
    return [directory / name for name in sorted(set(parts.values()))]


def _read_tensors(directory: Path, prefix: str) -> dict[str, "torch.Tensor"]:
    """Every tensor by its name in the bare encoder; checkpoints of TensorFlow's time call weight and bias otherwise."""
    from safetensors.torch import load_file

    found = {}
    for path in _weight_files(directory):
        for name, tensor in load_file(path).items():
            bare = name.removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight")
            found[bare.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor.float()
    return found


def _positions(found: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    positions = found["embeddings.position_embeddings.weight"]
    kinds = found.get("embeddings.token_type_embeddings.weight")
    return positions if kinds is None else positions + kinds[0]


def _padding(architecture: Architecture, config: Mapping[str, Any]) -> int | None:
    if architecture.padding is None or config["model_type"] == "mpnet":  # which takes no notice of its configuration
        return architecture.padding
    return int(config.get("pad_token_id", architecture.padding))


def _layers(found: Mapping[str, "torch.Tensor"], names: Architecture, eps: float) -> Iterator[Layer]:
    import torch

    number = 0
    while f"{names.layer.format(number)}{names.output_norm}.weight" in found:
        layer = names.layer.format(number)
        *projections, output = (_linear(found, layer + name) for name in names.attention)
        up, down = (_linear(found, layer + name) for name in names.feed_forward)
        yield Layer(
            attention_in=Linear(
                torch.cat([each.weight for each in projections]), torch.cat([each.bias for each in projections])
            ),
            attention_out=output,
            attention_norm=_norm(found, layer + names.attention_norm, eps),
            up=up,
            down=down,
            output_norm=_norm(found, layer + names.output_norm, eps),
        )
        number += 1
    if not number:
        raise KeyError(names.layer.format(0))


def _linear(found: Mapping[str, "torch.Tensor"], name: str) -> Linear:
    return Linear(found[f"{name}.weight"], found[f"{name}.bias"])


def _norm(found: Mapping[str, "torch.Tensor"], name: str, eps: float) -> Norm:
    return Norm(found[f"{name}.weight"], found[f"{name}.bias"], eps)
