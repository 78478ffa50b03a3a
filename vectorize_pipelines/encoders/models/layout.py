"""The layout of a model's directory: modules, pooling, length limit, prompts. Loads no weights.

Reads the files that sentence-transformers writes (`modules.json` and those it points to) and, where they are
absent, makes the choices that sentence-transformers itself makes for a plain Hugging Face encoder. Called by
`models.locate.read_spec` and by the engines, which decide from a layout whether they can reproduce a model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vectorize_pipelines.encoders.models.vetting import LARGEST_CONFIG_BYTES, check_folder, check_modules
from vectorize_pipelines.encoders.models.weights import safetensors_header
from vectorize_pipelines.errors import UnknownModelError

#: Names that the configuration of a Transformer module has had; `Transformer.load_config` tries them in this order.
TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)

#: Older pooling configurations have one flag per mode; several modes are concatenated in this order.
LEGACY_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

#: Architectures with a table of absolute positions: a longer input fails inside the model.
ABSOLUTE_POSITIONS = frozenset({"albert", "bert", "distilbert", "electra", "ernie", "nezha", "roformer"})

#: Those whose positions start behind the padding index, so that the table holds `pad_token_id + 1` fewer.
OFFSET_POSITIONS = frozenset({"camembert", "data2vec-text", "ibert", "mpnet", "roberta", "xlm-roberta"})

#: What the configuration classes of transformers take where config.json does not say.
DEFAULT_POSITIONS = 512
DEFAULT_PAD_TOKEN = 1

#: transformers gives a tokenizer without a limit 10**30; anything this large means "none".
NO_LIMIT = 10**9

#: Longest vector that every store takes.
LARGEST_DIMENSION = 65_535

#: What configurations that are no such thing raise where they are read: each value may be of any type.
MALFORMED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, StopIteration, RecursionError)


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """A model as its configuration describes it.

    directory              the model's folder
    transformer_directory  folder of the first module: config.json, weights and tokenizer
    modules                class names in the order in which they run, e.g. Transformer, Pooling, Normalize
    module_directories     the folder of each module
    architecture           `model_type` of config.json; empty where the first module is no transformer
    pooling_modes          concatenated in this order; empty without a Pooling module
    pool_prompt            whether the tokens of a prompt are pooled too
    dimension              length of a vector
    truncated              whether vectors are cut to `dimension` after the last module
    max_length             tokens with special tokens; None without a limit
    lower_case             whether text is lower-cased before the tokenizer's own normalisation
    prompt, query_prompt   put in front of documents and queries
    """

    directory: Path
    transformer_directory: Path
    modules: tuple[str, ...]
    module_directories: tuple[Path, ...]
    architecture: str
    pooling_modes: tuple[str, ...]
    pool_prompt: bool
    dimension: int
    truncated: bool
    max_length: int | None
    lower_case: bool
    prompt: str
    query_prompt: str

    @property
    def normalized(self) -> bool:
        """True where vectors have unit length: the last module normalises and nothing is cut off after it."""
        return self.modules[-1] == "Normalize" and not self.truncated


def read_layout(directory: Path) -> ModelLayout:
    """Return the layout of the model in `directory`. Raises `UnknownModelError` naming the file that is missing or bad.

    That is an `UntrustedModelError` where a file asks for code to be run (`vetting`).
    """
    try:
        layout = _read_layout(directory)
        check_folder(directory, layout.module_directories)
    except (OSError, *MALFORMED) as error:
        raise UnknownModelError(f"the configuration of the model in {directory} makes no sense: {error!r}") from error
    check_dimension(layout.dimension, directory)
    return layout


def check_dimension(dimension: int, directory: object) -> None:
    """Raise `UnknownModelError` for vectors that no store takes."""
    if not 1 <= dimension <= LARGEST_DIMENSION:
        raise UnknownModelError(
            f"the model in {directory} gives its vectors {dimension} dimensions; at most {LARGEST_DIMENSION} can be"
        )


def _read_layout(directory: Path) -> ModelLayout:
    general = read_json(directory / "config_sentence_transformers.json", required=False)
    modules = _read_modules(directory, general)
    if modules is None:
        return _plain_layout(directory)
    names = tuple(name for name, _ in modules)
    folders = tuple(folder for _, folder in modules)
    transformer_settings = read_transformer_settings(folders[0]) if names[0] == "Transformer" else {}
    config = read_json(folders[0] / "config.json", required=names[0] == "Transformer")
    pooling = next((read_json(folder / "config.json") for name, folder in modules if name == "Pooling"), {})
    dimension = _dimension(modules, config)
    cut = int(general.get("truncate_dim") or dimension)
    document_prompt, query_prompt = _prompts(general)
    return ModelLayout(
        directory=directory,
        transformer_directory=folders[0],
        modules=names,
        module_directories=folders,
        architecture=str(config.get("model_type", "")) if names[0] in {"Transformer", "CLIPModel"} else "",
        pooling_modes=_pooling_modes(pooling) if "Pooling" in names else (),
        pool_prompt=bool(pooling.get("include_prompt", True)),
        dimension=min(dimension, cut),
        truncated=cut < dimension,
        max_length=_max_length(folders[0], config, transformer_settings) if names[0] == "Transformer" else None,
        lower_case=bool(transformer_settings.get("do_lower_case", False)),
        prompt=document_prompt,
        query_prompt=query_prompt,
    )


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """Return the JSON object in `path`; {} where it is absent and not required. Raises `UnknownModelError`."""
    try:
        if path.stat().st_size > LARGEST_CONFIG_BYTES:
            raise UnknownModelError(f"cannot read {path}: a configuration of more than {LARGEST_CONFIG_BYTES:,} bytes")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        if required:
            raise UnknownModelError(f"the model in {path.parent} has no {path.name}") from None
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UnknownModelError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise UnknownModelError(f"cannot read {path}: a JSON object is expected, not a {type(value).__name__}")
    return value


def _read_modules(directory: Path, general: Mapping[str, Any]) -> list[tuple[str, Path]] | None:
    """Return class name and folder of each module; None where sentence-transformers would choose the modules itself."""
    path = directory / "modules.json"
    if not path.is_file() or general.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        return None
    try:
        entries = json.loads(path.read_bytes())
        check_modules(path, entries)
        modules = [(str(entry["type"]).rpartition(".")[2], directory / entry["path"]) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnknownModelError(f"cannot read {path}: {error!r}") from error
    if not modules:
        raise UnknownModelError(f"cannot read {path}: it lists no modules")
    return modules


def _plain_layout(directory: Path) -> ModelLayout:
    """Return the layout without modules: mean pooling, or the last token of a causal language model.

    As `SentenceTransformer._load_default_modules`; a model with image and text towers makes a vector itself.
    """
    config = read_json(directory / "config.json")
    two_towers = "text_config" in config and "vision_config" in config and "projection_dim" in config
    architectures = config.get("architectures") or [""]
    causal = str(architectures[0]).endswith("ForCausalLM") and config.get("is_causal", True)
    return ModelLayout(
        directory=directory,
        transformer_directory=directory,
        modules=("Transformer",) if two_towers else ("Transformer", "Pooling"),
        module_directories=(directory,) if two_towers else (directory, directory),
        architecture=str(config.get("model_type", "")),
        pooling_modes=() if two_towers else ("lasttoken" if causal else "mean",),
        pool_prompt=True,
        dimension=int(config["projection_dim"]) if two_towers else _hidden_size(config, directory),
        truncated=False,
        max_length=_max_length(directory, config, {}),
        lower_case=False,
        prompt="",
        query_prompt="",
    )


def read_transformer_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a Transformer module of sentence-transformers; {} where it has none."""
    for name in TRANSFORMER_CONFIGS:
        settings = read_json(folder / name, required=False)
        if settings:
            return settings
    return {}


def _pooling_modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        return (mode,)
    if mode:
        return tuple(str(each) for each in mode)
    flagged = tuple(name for flag, name in LEGACY_POOLING_FLAGS.items() if config.get(flag))
    return flagged or ("mean",)


def _prompts(general: Mapping[str, Any]) -> tuple[str, str]:
    """Return the prompts for documents and for queries.

    The names are those that `encode_document` and `encode_query` document. Where a model has none for the
    purpose its default prompt stands in, as in `encode`, unless that one is meant for the other purpose.
    """
    prompts = {str(name): str(text or "") for name, text in (general.get("prompts") or {}).items()}
    default = str(general.get("default_prompt_name") or "")
    names = [name for name in ("document", "passage", "corpus") if name in prompts]
    document = prompts[names[0]] if names else ""
    query = prompts.get("query", "")
    if default not in names:
        query = query or prompts.get(default, "")
    if default != "query" or not names:
        document = document or prompts.get(default, "")
    return document, query


def _dimension(modules: list[tuple[str, Path]], config: Mapping[str, Any]) -> int:
    """Return the length of what the last module that changes it puts out, as `get_embedding_dimension` finds it."""
    for name, folder in reversed(modules):
        if name == "Dense":
            return int(read_json(folder / "config.json")["out_features"])
        if name == "Pooling":
            pooling = read_json(folder / "config.json")
            width = pooling.get("embedding_dimension") or pooling.get("word_embedding_dimension")
            return int(width or _hidden_size(config, folder)) * len(_pooling_modes(pooling))
        if name == "Transformer":
            return _hidden_size(config, folder)
        if name == "CLIPModel":
            return int(config.get("projection_dim", DEFAULT_POSITIONS))
        if name == "StaticEmbedding":
            return _columns(folder / "model.safetensors")
    listed = ", ".join(name for name, _ in modules)
    raise UnknownModelError(f"the dimension of {modules[0][1]} is not known from its modules: {listed}")


def _hidden_size(config: Mapping[str, Any], folder: Path) -> int:
    for name in ("hidden_size", "dim", "d_model", "n_embd"):
        if name in config:
            return int(config[name])
    if isinstance(config.get("text_config"), dict):
        return _hidden_size(config["text_config"], folder)
    raise UnknownModelError(f"{folder / 'config.json'} does not say how wide the model is (hidden_size)")


def _columns(path: Path) -> int:
    """Return the columns of the first matrix in a safetensors file."""
    return next(shape[1] for shape in safetensors_header(path).values() if len(shape) == 2)


def _max_length(folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any]) -> int | None:
    """Return the tokens that the model takes, as sentence-transformers resolves it, within its positions.

    Stated for the Transformer module; else the tokenizer's limit, capped by `max_position_embeddings`.
    """
    tokenizer = read_json(folder / "tokenizer_config.json", required=False)
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    architecture = config.get("model_type", "")
    if positions is None and architecture in ABSOLUTE_POSITIONS | OFFSET_POSITIONS:
        positions = DEFAULT_POSITIONS
    overridden = settings.get("processor_kwargs") or settings.get("tokenizer_args") or {}
    stated = overridden.get("model_max_length", settings.get("max_seq_length"))
    length = stated
    if stated is None:
        length = tokenizer.get("model_max_length", tokenizer.get("max_len")) or NO_LIMIT
        if positions is not None and positions != -1:
            length = min(length, positions)
    if architecture in ABSOLUTE_POSITIONS and positions is not None:
        length = min(length, positions)
    if architecture in OFFSET_POSITIONS and positions is not None:
        length = min(length, positions - int(config.get("pad_token_id", DEFAULT_PAD_TOKEN)) - 1)
    return int(length) if length is not None and length < NO_LIMIT else None
