"""The vetting of what a model may bring with it: data, never code.

A model comes from the hub or from a folder, so whoever made it may be hostile. The libraries that load models run code
for it where its files ask for that: `auto_map` and `trust_remote_code` import modules of the repository or of another
one, `modules.json` names classes to import, `attn_implementation` may name a kernel to download, and a pickle runs
whatever it holds. So the files are looked through here before a library sees them (`check_folder`, when a model is
described), and the library is given a copy of the folder that has only what was looked through (`model_view`, when it
is loaded): configurations as they were checked, vocabularies, and safetensors. What is not on the lists below is
refused.
"""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vectorize_pipelines.errors import UnknownModelError, UntrustedModelError

#: The one format of weights that holds numbers and nothing else.
SAFE_WEIGHTS = ".safetensors"

#: Files that a library may see, beside configurations and weights: vocabularies of tokenizers.
VOCABULARIES = frozenset({".txt", ".model", ".vocab", ".spm", ".codes", ".tiktoken", ".bpe"})

#: JSON whose keys are words, not settings; some are large.
_DATA_FILES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json"})

#: A configuration has some kilobytes.
LARGEST_CONFIG_BYTES = 16 * 2**20

#: Chat templates are programs (Jinja); embedding needs none.
_LEFT_OUT = frozenset({"chat_template"})

_ADAPTER = "adapter_config.json"

#: Lists of the parts that weights are split into. Others' names may hide a configuration.
_INDEXES = frozenset({"model.safetensors.index.json", "pytorch_model.bin.index.json"})

#: Keys by which a configuration asks for code.
_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "use_kernels", "kernel_config"})

#: Keys that have a library read another file than the one that was looked through and that the layout was read from.
_OTHER_FILE_KEYS = frozenset({"configuration_files", "fast_tokenizer_files", "transformers_weights"})

_PACKAGE = r"sentence_transformers\.(models|base\.modules|sentence_transformer\.modules)(\.\w+)?\."
_MODULES = (
    "Transformer|Pooling|Dense|Normalize|LayerNorm|Dropout|CNN|LSTM|BoW|WordEmbeddings|WordWeights|"
    "WeightedLayerPooling|StaticEmbedding|CLIPModel"
)
#: What `modules.json` may name: a class of sentence-transformers' own that reads nothing but its folder.
_MODULE_CLASS = re.compile(_PACKAGE + rf"({_MODULES})")
_TOKENIZER_CLASS = re.compile(
    r"sentence_transformers\.(models|sentence_transformer\.modules)\.tokenizer(\.\w+)?\.(Whitespace|Word)Tokenizer"
)
_ACTIVATION_CLASS = re.compile(r"torch\.nn(\.modules\.(activation|linear))?\.[A-Za-z0-9]+")
#: What of a transformer the module of sentence-transformers may call.
_FORWARD = re.compile(r"forward|get_(text|image|audio|video)_features")

#: Arguments that a configuration may pass on to transformers; numbers, texts and yes or no.
_MODEL_ARGUMENTS = frozenset({"dtype", "torch_dtype", "attn_implementation", "add_pooling_layer"})
_TOKENIZER_ARGUMENTS = frozenset(
    {
        "model_max_length",
        "max_length",
        "padding",
        "padding_side",
        "truncation",
        "truncation_side",
        "do_lower_case",
        "use_fast",
        "add_prefix_space",
        "add_bos_token",
        "add_eos_token",
        "clean_up_tokenization_spaces",
    }
)
#: Of a configuration's own settings, which have any name, those that say where it is read from.
_LOADING_ARGUMENTS = frozenset(
    {"auto_map", "cache_dir", "code_revision", "gguf_file", "proxies", "revision", "subfolder", "token", "config_file"}
)
_ARGUMENTS = {
    "model_args": _MODEL_ARGUMENTS,
    "model_kwargs": _MODEL_ARGUMENTS,
    "tokenizer_args": _TOKENIZER_ARGUMENTS,
    "processor_kwargs": _TOKENIZER_ARGUMENTS,
    "config_args": None,
    "config_kwargs": None,
}
#: Arguments that a CLIP model's configuration may pass on to its tokenizer.
_CLIP_TOKENIZER_ARGUMENTS = frozenset({"clean", "strip_sep_token", "language"})

_REPOSITORY = re.compile(r"(?:[A-Za-z0-9_-][\w.-]*/)?[A-Za-z0-9_-][\w.-]*", re.ASCII)
_PLAIN_FILE = re.compile(r"[A-Za-z0-9_-][\w.-]*", re.ASCII)
_ARCHITECTURE = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?", re.ASCII)

_REMEDY = "code that comes with a model is never run; choose a model that needs none"


def is_repository(name: str) -> bool:
    """Return whether `name` has the form of a repository of the hub: `name` or `organization/name`."""
    return _REPOSITORY.fullmatch(name) is not None and ".." not in name


def check_weights(files: Iterable[Path], model: str, *, pickled: bool) -> None:
    """Raise `UntrustedModelError` for weights that are not safetensors, unless pickles are allowed."""
    for file in files:
        if file.suffix != SAFE_WEIGHTS and not pickled:
            raise UntrustedModelError(
                f"the weights of {model} are pickled ({file.name}), and a pickle can run code; take a model with "
                "safetensors, or, where you trust its makers, set models.allow_pickled_weights "
                "(VECTORIZE_MODELS__ALLOW_PICKLED_WEIGHTS=true) and make it ready by `vectorize models prefetch`"
            )


def check_folder(directory: Path, module_directories: Iterable[Path] = ()) -> None:
    """Look through every configuration of the model in `directory`. Raises `UnknownModelError` naming file and key."""
    for folder in _folders(directory, module_directories):
        for path in folder.iterdir():
            if _is_config(path) and path.is_file():
                _checked(path)


def check_modules(path: Path, entries: Any) -> None:
    """Look through the content of a modules.json. Raises `UnknownModelError`."""
    if not isinstance(entries, list):
        raise UnknownModelError(f"cannot read {path}: it is no list of modules")
    for entry in entries:
        kind, folder = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(folder, str):
            raise UnknownModelError(f"cannot read {path}: each module is an object with type and path, both texts")
        if _MODULE_CLASS.fullmatch(kind) is None:
            raise UntrustedModelError(f"{path} names the module {kind[:200]!r}, which is not loaded: {_REMEDY}")
        if folder and not all(_PLAIN_FILE.fullmatch(part) for part in folder.rstrip("/").split("/")):
            raise UntrustedModelError(f"{path} names a folder that is not the model's own: {folder[:200]!r}")


def check_clip_config(path: object, config: Mapping[str, Any]) -> None:
    """Look through open_clip's `model_cfg`, read from `path`. Raises `UnknownModelError`."""
    _check_values(path, config)
    text, vision = config["text_cfg"], config["vision_cfg"]
    _check_arguments(path, "tokenizer_kwargs", text.get("tokenizer_kwargs"), _CLIP_TOKENIZER_ARGUMENTS)
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if text.get(key) and not is_repository(str(text[key])):
            raise UntrustedModelError(f"{path}: {key} is no repository of the hub: {str(text[key])[:200]!r}")
    tower = vision.get("timm_model_name")
    if tower and not _ARCHITECTURE.fullmatch(str(tower)):
        raise UntrustedModelError(f"{path}: timm_model_name is no architecture of timm: {str(tower)[:200]!r}")
    for section in (text, vision):
        for key in ("act_kwargs", "norm_kwargs"):
            _check_arguments(path, key, section.get(key), None)


@contextlib.contextmanager
def model_view(directory: Path, module_directories: Iterable[Path] = (), *, pickled: bool = False) -> Iterator[Path]:
    """Make a folder for a library to load the model in `directory` from: what was looked through, and nothing else.

    With `pickled` it has pickled weights too, where there are no safetensors beside them. It is gone after the block.
    """
    with tempfile.TemporaryDirectory(prefix="model-") as name:
        view = Path(name)
        for folder in _folders(directory, module_directories):
            copy = view / folder.relative_to(directory)
            copy.mkdir(parents=True, exist_ok=True)
            copy_files(folder, copy, pickled=pickled)
        yield view


def copy_files(folder: Path, copy: Path, *, pickled: bool = False, weights: bool = True) -> None:
    """Lay the files of one folder that a library may see into another one. Raises `UnknownModelError`."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    safe = any(path.suffix == SAFE_WEIGHTS for path in files)
    for path in files:
        if _is_config(path):
            copy_config(path, copy / path.name)
        elif (
            path.name in _DATA_FILES
            or path.suffix in VOCABULARIES
            or (weights and (path.suffix == SAFE_WEIGHTS or (path.suffix == ".bin" and pickled and not safe)))
        ):
            link(path, copy / path.name)


def copy_config(path: Path, copy: Path) -> None:
    """Write a configuration as it was looked through. Raises `UnknownModelError`."""
    content = _checked(path)
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _LEFT_OUT}
    try:
        copy.write_text(json.dumps(content), encoding="utf-8")
    except RecursionError as error:
        raise UnknownModelError(f"cannot read {path}: {error}") from error


def link(path: Path, place: Path) -> None:
    """Put a file at another place: by a link where that is possible, else as a copy."""
    try:
        place.symlink_to(path.resolve())
    except OSError:  # Windows without the privilege
        shutil.copyfile(path, place)


def index_parts(path: Path, content: Mapping[str, Any]) -> list[str]:
    """Return the files that an index of weights names, all of them in its own folder. Raises `UnknownModelError`."""
    names = content.get("weight_map", {})
    if not isinstance(names, dict):
        raise UnknownModelError(f"cannot read {path}: its weight_map is no object")
    parts = sorted({str(name) for name in names.values()})
    for name in parts:
        if _PLAIN_FILE.fullmatch(name) is None:
            raise UntrustedModelError(f"{path} names weights that are not in its own folder: {name[:200]!r}")
    return parts


def _is_config(path: Path) -> bool:
    """Return whether a file is one of those that libraries take settings from."""
    name = path.name
    return path.suffix == ".json" and (
        "config" in name or name in ("modules.json", "special_tokens_map.json") or name in _INDEXES
    )


def _folders(directory: Path, module_directories: Iterable[Path]) -> list[Path]:
    # A module without parameters, such as Normalize, often has no folder.
    return sorted(folder for folder in {directory, *module_directories} if folder.is_dir())


def _checked(path: Path) -> Any:
    """Return the content of a configuration, looked through."""
    if path.name == _ADAPTER:
        raise UntrustedModelError(
            f"{path.parent} holds an adapter ({_ADAPTER}), which loads another model beneath it; merge it into that one"
        )
    content = _read(path)
    _check_values(path, content)
    if path.name == "modules.json":
        check_modules(path, content)
    elif isinstance(content, dict):
        index_parts(path, content)  # whatever its name is: a library may be led to it as to an index
        _check_settings(path, content)
    return content


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_CONFIG_BYTES:
            raise UnknownModelError(f"cannot read {path}: a configuration of more than {LARGEST_CONFIG_BYTES:,} bytes")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnknownModelError(f"cannot read {path}: {error}") from error


def _check_values(path: object, content: Any) -> None:
    """Check that nothing at any depth asks for code."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for key, each in value.items():
                _check_value(path, str(key), each)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _check_value(path: object, key: str, value: Any) -> None:
    if key in _CODE_KEYS and value:
        raise UntrustedModelError(f"{path} asks for code of the model's own ({key}): {_REMEDY}")
    if key in _OTHER_FILE_KEYS and value:
        raise UntrustedModelError(
            f"{path} names other files to be read instead of the usual ones ({key}); keep the one that is needed, "
            "under the usual name, and leave the key out"
        )
    if key.endswith("_implementation"):
        named = value.values() if isinstance(value, dict) else [value]
        if any(isinstance(each, str) and re.search(r"[/:@]", each) for each in named):
            raise UntrustedModelError(f"{path} asks for a kernel to be fetched ({key}): {_REMEDY}")


def _check_settings(path: Path, content: Mapping[str, Any]) -> None:
    """Check the settings of a sentence-transformers module that name classes, methods, or arguments of loading."""
    for key, allowed in _ARGUMENTS.items():
        _check_arguments(path, key, content.get(key), allowed)
    if content.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise UntrustedModelError(f"{path}: transformer_task is {str(content['transformer_task'])[:200]!r}: {_REMEDY}")
    _check_modalities(path, content.get("modality_config"))
    activation = content.get("activation_function")
    if activation is not None and "." in str(activation) and not _ACTIVATION_CLASS.fullmatch(str(activation)):
        raise UntrustedModelError(f"{path}: activation_function is {str(activation)[:200]!r}: {_REMEDY}")
    tokenizer = content.get("tokenizer_class")
    if tokenizer is not None and "." in str(tokenizer) and not _TOKENIZER_CLASS.fullmatch(str(tokenizer)):
        raise UntrustedModelError(f"{path}: tokenizer_class is {str(tokenizer)[:200]!r}: {_REMEDY}")


def _check_modalities(path: object, modalities: Any) -> None:
    """Check the methods of a transformer that its module calls for each kind of input."""
    if modalities is None:
        return
    if not isinstance(modalities, dict) or not all(isinstance(each, dict) for each in modalities.values()):
        raise UnknownModelError(f"cannot read {path}: modality_config is no object of objects")
    for modality in modalities.values():
        method = str(modality.get("method", "forward"))
        if not _FORWARD.fullmatch(method):
            raise UntrustedModelError(f"{path}: modality_config names the method {method[:200]!r}: {_REMEDY}")


def _check_arguments(path: object, name: str, arguments: Any, allowed: "frozenset[str] | None") -> None:
    """Check arguments; `allowed` None: any but those that say where something is read from."""
    if not arguments:
        return
    if not isinstance(arguments, dict):
        raise UnknownModelError(f"cannot read {path}: {name} is no object")
    for key, value in arguments.items():
        if key in _LOADING_ARGUMENTS or (allowed is not None and key not in allowed) or _is_nested(value):
            raise UntrustedModelError(f"{path}: {name} passes {str(key)[:200]!r} on, which is not allowed: {_REMEDY}")


def _is_nested(value: Any) -> bool:
    return isinstance(value, (dict, Sequence)) and not isinstance(value, str)
