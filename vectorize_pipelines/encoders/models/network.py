"""Reading a BERT-like encoder from config.json and safetensors, without transformers.

BERT, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT and MPNet are one network: embeddings, then layers of
self-attention and feed-forward, each followed by a residual connection and a layer norm. They differ in names, in how
positions are counted, and MPNet in a bias on the attention. Here they become one structure, of whichever library's
tensors: the engine `torch` computes with it, and where sentence-transformers is not installed OpenVINO's graph and the
reference in numpy are made from it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vectorize_pipelines.encoders.models.layout import DEFAULT_POSITIONS, ModelLayout, read_json
from vectorize_pipelines.encoders.models.vetting import index_parts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Tensor = TypeVar("Tensor")

#: What the configuration classes of transformers take where config.json does not say.
DEFAULT_HIDDEN = 768
DEFAULT_INTERMEDIATE = 3072
DEFAULT_HEADS = 12
DEFAULT_LAYER_NORM_EPS = 1e-12

#: Names in config.json -> the activations that are computed.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

#: Modules of sentence-transformers that are computed, in the orders in which they are.
MODULES = (("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize"))

#: The ways of pooling that are computed.
POOLING_MODES = frozenset({"mean", "cls", "max"})

#: Distance at which MPNet's attention bias stops growing; a constant in transformers' `relative_position_bucket`.
FARTHEST = 128

#: Rows of MPNet's attention bias that transformers uses, whatever its configuration says.
BIAS_ROWS = 32

#: Rows of tables that checkpoints keep beside the weights.
_BUFFERS = ("position_ids", "token_type_ids")


@dataclass(frozen=True, slots=True)
class Architecture:
    """The names that one `model_type` has for the parts.

    prefix          in front of every name in checkpoints of a model with a head
    layer           in front of a layer's names; `{}` is its number
    attention       query, key, value, output
    attention_norm  layer norm after the attention
    feed_forward    up, down
    output_norm     layer norm after the feed-forward
    hidden, intermediate, heads, layers, activation  names in config.json
    padding         None: positions count from 0; else they count from behind this token, skipping it, unless
                    config.json names another one
    norm_eps        of every layer norm, whatever config.json says; None: as it says
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
    layers: str = "num_hidden_layers"
    activation: str = "hidden_act"
    padding: int | None = None
    norm_eps: float | None = None


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
        layers="n_layers",
        activation="activation",
        norm_eps=1e-12,
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
class Linear(Generic[Tensor]):
    """A linear layer: weight (out, in), bias (out,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Norm(Generic[Tensor]):
    """A norm: weight and bias (hidden,)."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Layer(Generic[Tensor]):
    """Linear layers of (hidden, hidden), but for `up` (intermediate, hidden) and `down` (hidden, intermediate)."""

    query: Linear[Tensor]
    key: Linear[Tensor]
    value: Linear[Tensor]
    attention_out: Linear[Tensor]
    attention_norm: Norm[Tensor]
    up: Linear[Tensor]
    down: Linear[Tensor]
    output_norm: Norm[Tensor]


@dataclass(frozen=True, slots=True)
class Network(Generic[Tensor]):
    """An encoder's weights, float32, and the little that they do not show.

    words       (vocabulary, hidden)
    positions   (positions, hidden); the embedding of the only token type that a single text has is part of it
    heads       of the attention
    activation  a value of `ACTIVATIONS`
    padding     None: positions count from 0; else they count from behind this token, skipping it
    bias        (buckets, heads): added to the attention by distance, as MPNet does; None elsewhere
    unread      names of tensors of the encoder that nothing here stands for
    """

    words: Tensor
    positions: Tensor
    embedding_norm: Norm[Tensor]
    layers: tuple[Layer[Tensor], ...]
    heads: int
    activation: str
    padding: int | None
    bias: Tensor | None
    unread: tuple[str, ...]


def refusal(layout: ModelLayout) -> str | None:
    """Return why a model is not computed from such a structure; None if it may be. Reads no weights."""
    if layout.modules not in MODULES:
        return f"it covers a transformer, pooling and normalisation, not {', '.join(layout.modules)}"
    foreign = [mode for mode in layout.pooling_modes if mode not in POOLING_MODES]
    if foreign:
        return f"it does not cover {foreign[0]} pooling"
    if not layout.pool_prompt and (layout.prompt or layout.query_prompt):
        return "it does not cover pooling that leaves the prompt out"
    return _refusal_of_encoder(layout.transformer_directory)


def _refusal_of_encoder(directory: Path) -> str | None:
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
    """Return the shape of the encoder in `directory`. Reads no weights."""
    config = read_json(directory / "config.json")
    architecture = ARCHITECTURES[str(config["model_type"])]
    return Shape(
        hidden=int(config.get(architecture.hidden, DEFAULT_HIDDEN)),
        intermediate=int(config.get(architecture.intermediate, DEFAULT_INTERMEDIATE)),
        heads=int(config.get(architecture.heads, DEFAULT_HEADS)),
        positions=int(config.get("max_position_embeddings", DEFAULT_POSITIONS)),
    )


def read_network(
    directory: Path, load: Callable[[Path], Mapping[str, Tensor]], norm_eps: float | None = None
) -> Network[Tensor]:
    """Return the encoder in `directory`; `load` reads a safetensors file as float32.

    norm_eps  of every layer norm; None: what config.json says

    Raises `KeyError` naming what is missing, and what `load` raises.
    """
    config = read_json(directory / "config.json")
    architecture = ARCHITECTURES[str(config["model_type"])]
    found = _read_tensors(directory, architecture.prefix, load)
    eps = float(config.get("layer_norm_eps", DEFAULT_LAYER_NORM_EPS)) if norm_eps is None else norm_eps
    words, positions = found.pop("embeddings.word_embeddings.weight"), _positions(found)
    embedding_norm = _norm(found, "embeddings.LayerNorm", eps)
    layers = tuple(_layers(found, architecture, eps))
    bias = found.pop("encoder.relative_attention_bias.weight", None)
    parts = ("embeddings.", architecture.layer.partition("layer")[0])
    return Network(
        words=words,
        positions=positions,
        embedding_norm=embedding_norm,
        layers=layers,
        heads=int(config.get(architecture.heads, DEFAULT_HEADS)),
        activation=ACTIVATIONS[config.get(architecture.activation, "gelu")],
        padding=_padding(architecture, config),
        bias=bias,
        unread=tuple(sorted(name for name in found if name.startswith(parts) and not name.endswith(_BUFFERS))),
    )


def read_arrays(directory: Path) -> "Network[npt.NDArray[np.float32]]":
    """Return `read_network` in numpy.

    Raises `ValueError` where weights and configuration do not say the same of the encoder, so that a library which
    goes by the configuration might make another one of it; `safetensors.SafetensorError` or `OSError` for a file that
    is damaged, and `KeyError` naming what is missing.
    """
    config = read_json(directory / "config.json")
    kind = str(config["model_type"])
    network = read_network(directory, _load_arrays, ARCHITECTURES[kind].norm_eps)
    stated = config.get(ARCHITECTURES[kind].layers, len(network.layers))
    if stated != len(network.layers):
        raise ValueError(f"config.json says {stated} layers, and its weights have {len(network.layers)}")
    rows, expected = 0 if network.bias is None else len(network.bias), BIAS_ROWS if kind == "mpnet" else 0
    if rows != expected:
        raise ValueError(f"its weights have an attention bias of {rows} rows, where {kind} has {expected}")
    if network.unread:
        raise ValueError(f"its weights have parts that are not known, such as {network.unread[0]}")
    return network


def distance_buckets(buckets: int, longest: int) -> "npt.NDArray[np.int64]":
    """Return MPNet's row of the bias for each distance from -(longest - 1) to longest - 1, of a key behind its query.

    As `MPNetEncoder.relative_position_bucket`: near distances have a row each, farther ones share one by their
    logarithm; those behind and those in front have a half of the rows each.
    """
    import numpy as np

    half = buckets // 2
    near = half // 2
    behind = np.arange(-(longest - 1), longest)
    distance = np.abs(behind)
    scale = np.float32(np.log(FARTHEST / near))
    with np.errstate(divide="ignore"):
        steps = np.log(distance.astype(np.float32) / np.float32(near)) / scale * np.float32(half - near)
    far = near + np.where(distance < near, 0, steps).astype(np.int64)
    rows: npt.NDArray[np.int64] = np.where(distance < near, distance, np.minimum(far, half - 1)) + (behind > 0) * half
    return rows


def _weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a model: one, or those that an index lists."""
    whole = directory / "model.safetensors"
    if whole.is_file():
        return [whole]
    index = directory / "model.safetensors.index.json"
    return [directory / name for name in index_parts(index, read_json(index, required=False))]


def _read_tensors(directory: Path, prefix: str, load: Callable[[Path], Mapping[str, Tensor]]) -> dict[str, Any]:
    """Return each tensor by its name in the bare encoder; old TensorFlow checkpoints call weight and bias otherwise."""
    found: dict[str, Any] = {}
    for path in _weight_files(directory):
        for name, tensor in load(path).items():
            bare = name.removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight")
            found[bare.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    return found


def _load_arrays(path: Path) -> "dict[str, npt.NDArray[np.float32]]":
    """Return the arrays of a file. numpy has no bfloat16: its bits are the upper half of a float32's."""
    import numpy as np
    import safetensors

    types = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64}
    found = {}
    for name, entry in safetensors.deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
        if entry["dtype"] not in types:
            raise ValueError(f"its weights have numbers of the type {entry['dtype']}, which is not known")
        values = np.frombuffer(entry["data"], types[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        found[name] = values.astype(np.float32, copy=False)
    return found


def _positions(found: dict[str, Any]) -> Any:
    positions = found.pop("embeddings.position_embeddings.weight")
    kinds = found.pop("embeddings.token_type_embeddings.weight", None)
    return positions if kinds is None else positions + kinds[0]


def _padding(architecture: Architecture, config: Mapping[str, Any]) -> int | None:
    if architecture.padding is None or config["model_type"] == "mpnet":  # which takes no notice of its configuration
        return architecture.padding
    return int(config.get("pad_token_id", architecture.padding))


def _layers(found: dict[str, Any], names: Architecture, eps: float) -> Iterator[Layer[Any]]:
    number = 0
    while f"{names.layer.format(number)}{names.output_norm}.weight" in found:
        layer = names.layer.format(number)
        query, key, value, output = (_linear(found, layer + name) for name in names.attention)
        up, down = (_linear(found, layer + name) for name in names.feed_forward)
        yield Layer(
            query=query,
            key=key,
            value=value,
            attention_out=output,
            attention_norm=_norm(found, layer + names.attention_norm, eps),
            up=up,
            down=down,
            output_norm=_norm(found, layer + names.output_norm, eps),
        )
        number += 1
    if not number:
        raise KeyError(names.layer.format(0))


def _linear(found: dict[str, Any], name: str) -> Linear[Any]:
    return Linear(found.pop(f"{name}.weight"), found.pop(f"{name}.bias"))


def _norm(found: dict[str, Any], name: str, eps: float) -> Norm[Any]:
    return Norm(found.pop(f"{name}.weight"), found.pop(f"{name}.bias"), eps)
