"""Finding a CLIP model by the name that users use, and reading what it is, without loading its weights.

Called by the engine `open_clip`. The names:

    ViT-B/32, ViT-L/14@336px, RN50            OpenAI's models, as their package `clip` names them
    ViT-B-32:laion2b_s34b_b79k                architecture and weights, as `open_clip.list_pretrained` prints them;
                                              a slash may stand for the colon
    ViT-B-32:openai:/models/ViT-B-32.pt       the same, and the file that holds these weights
    hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K    a repository of the Hugging Face hub
    /models/my-clip, local-dir:/models/my-clip      a folder with open_clip_config.json and the weights

What weights need beside their architecture (QuickGELU, mean and deviation of the pixels, interpolation) belongs to
the name of the weights, or to the folder's configuration; so a file is never loaded without one of the two.
"""

import contextlib
import difflib
import importlib.util
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vectorize_pipelines.core.extras import is_installed, needs
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.encoders.models.layout import MALFORMED, check_dimension, read_json
from vectorize_pipelines.encoders.models.locate import (
    HUB_PREFIX,
    FetchError,
    fetch_file,
    fetch_snapshot,
    hub_caches,
    not_fetched,
)
from vectorize_pipelines.encoders.models.revisions import revision_of
from vectorize_pipelines.encoders.models.vetting import SAFE_WEIGHTS, check_clip_config, check_weights, is_repository
from vectorize_pipelines.errors import MissingExtraError, ModelNotFetchedError, UnknownModelError
from vectorize_pipelines.images.preprocessing import INTERPOLATIONS, RESIZE_MODES, Preprocessing

#: Names of `clip.available_models()` -> architecture in open_clip.
OPENAI_NAMES = {
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
}

CONFIG_FILE = "open_clip_config.json"

#: Where open_clip looks for weights in a folder, best first (`_find_checkpoint_in_dir`).
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)

#: Of those, what repositories of the hub are asked for.
HUB_WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")

#: Files of a tokenizer that a model brings itself, as far as they are part of its revision.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt")

#: What is fetched of a repository that has the tokenizer of a CLIP model. The last is there when the others are.
TOKENIZER_PATTERNS = (
    *("config.json", "tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model"),
    *("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"),
)

#: What open_clip takes where a configuration does not say (`PreprocessCfg`, `CLIPVisionCfg`, `CLIPTextCfg`).
DEFAULT_MEAN = (0.48145466, 0.4578275, 0.40821073)
DEFAULT_STD = (0.26862954, 0.26130258, 0.27577711)
DEFAULT_IMAGE_SIZE = 224
DEFAULT_CONTEXT_LENGTH = 77

#: What a misspelt name of a CLIP model starts with; no text model of the hub does.
_CLIP_LIKE = re.compile(r"(vit-[a-z]+[-/]|rn\d+|convnext_|coca_vit|eva0\d|mobileclip|pe-core)", re.IGNORECASE)

_REMEDY = (
    "Give a folder that holds the weights and open_clip_config.json (a downloaded repository of the hub), or the file "
    "of the weights as ARCHITECTURE:WEIGHTS:FILE; or check the network and, for a private repository, HF_TOKEN"
)


@dataclass(frozen=True)
class ClipModel:
    """A CLIP model found on disk.

    name              as it goes into the fingerprint: `ViT-B-32:openai` for every spelling of it
    weights           the file that holds them
    config            open_clip's `model_cfg`, QuickGELU settled
    preprocessing     how its images are prepared
    tokenizer_files   those that lie beside the weights, where the model has a tokenizer of its own
    tokenizer_folder  where these lie; None for a model whose tokenizer, if it is not CLIP's, is of a repository
    """

    name: str
    weights: Path
    config: Mapping[str, Any]
    preprocessing: Preprocessing
    tokenizer_files: tuple[Path, ...] = ()
    tokenizer_folder: Path | None = None

    @cached_property
    def text_config(self) -> Mapping[str, Any]:
        settings: Mapping[str, Any] = self.config["text_cfg"]
        return settings

    @property
    def context_length(self) -> int:
        """The tokens that the text tower takes, start and end included."""
        return int(self.text_config.get("context_length", DEFAULT_CONTEXT_LENGTH))

    @property
    def has_clip_tokenizer(self) -> bool:
        """True where texts are tokenized as OpenAI's CLIP does it."""
        own = ("hf_tokenizer_name", "hf_model_name", "tokenizer_kwargs", "tokenizer_mode")
        return not any(self.text_config.get(name) for name in own)

    def spec(self, cache_directory: Path | None) -> EncoderSpec:
        """Return what the model is. Its revision covers weights, configuration, preprocessing and its own tokenizer."""
        settings = json.dumps([dict(self.config), repr(self.preprocessing)], sort_keys=True)
        files = {"weights": self.weights, **{path.name: path for path in self.tokenizer_files}}
        vision = self.config["vision_cfg"]
        image_pooling = (
            vision.get("timm_pool", "avg") if "timm_model_name" in vision else vision.get("pool_type", "tok")
        )
        return EncoderSpec(
            name=self.name,
            revision=revision_of(files, cache_directory, settings),
            dimension=int(self.config["embed_dim"]),
            max_length=self.context_length,
            pooling=f"{image_pooling or 'none'}+{self.text_config.get('pool_type', 'argmax')}",
            prompt="",
            query_prompt="",
            modalities=frozenset({Modality.TEXT, Modality.IMAGE}),
            normalized=True,
        )


def recognises(name: str) -> bool:
    """Return whether `name` can only be a CLIP model of open_clip, even misspelt; looks at the local disk alone."""
    if name.startswith(HUB_PREFIX):
        return _recognised_without_folders(name.removeprefix(HUB_PREFIX))
    if name in OPENAI_NAMES or name.startswith(("hf-hub:", "local-dir:")) or _architecture_and_tag(name) is not None:
        return True
    if (Path(name).expanduser() / CONFIG_FILE).is_file():
        return True
    if _is_repository(name) and _cached_in_hub(name, CONFIG_FILE) is not None:
        return True
    return _CLIP_LIKE.match(name) is not None and not Path(name).exists()


def _recognised_without_folders(name: str) -> bool:
    if name in OPENAI_NAMES or name.startswith("hf-hub:") or _architecture_and_tag(name) is not None:
        return True
    return _CLIP_LIKE.match(name) is not None or (
        _is_repository(name) and _cached_in_hub(name, CONFIG_FILE) is not None
    )


def weights_file(name: str) -> str | None:
    """Return the file of weights that a name has after an architecture and a tag; None where it has none."""
    parts = None if name.startswith(("hf-hub:", "local-dir:")) else _architecture_and_tag(name)
    return None if parts is None else parts[2]


def is_architecture(name: str) -> bool:
    """Return whether a name is an architecture's of open_clip, with or without a tag; decided by the name alone."""
    return name in OPENAI_NAMES or _architecture_and_tag(name) is not None


def canonical_clip_name(name: str) -> str:
    """Return `ViT-B-32:openai` for `ViT-B/32`; names of no architecture unchanged. Decided by the name alone."""
    if name in OPENAI_NAMES:
        return f"{OPENAI_NAMES[name]}:openai"
    parts = _architecture_and_tag(name)
    if parts is None or parts[2] is not None:
        return name
    return f"{parts[0]}:{_tag(parts[1])}"


def _tag(tag: str) -> str:
    return tag.lower().replace("-", "_")


def locate_clip(name: str, cache_directory: Path, *, fetch: bool = True, pickled_weights: bool = False) -> ClipModel:
    """Find the model called `name` and read its configuration; fetch it from the hub where nothing is on disk.

    With `HUB_PREFIX` in front of it a folder is not looked for. Raises `UnknownModelError` that says where it was
    looked for, which names are near, and what to do; `UntrustedModelError` where its configuration asks for code or,
    without `pickled_weights`, its weights are pickled; and `ModelNotFetchedError` without `fetch`, for a model that
    only the hub may have. `MissingExtraError` where open_clip is not installed.
    """
    _package()
    try:
        model = _located(name, cache_directory, fetch=fetch, pickled=pickled_weights)
        check_clip_config(model.name, model.config)
        check_dimension(int(model.config["embed_dim"]), model.name)
        model.context_length  # noqa: B018 - of a configuration that makes no sense it raises
    except MALFORMED as error:
        raise UnknownModelError(f"the configuration of {name} makes no sense: {error!r}") from error
    check_weights([model.weights], model.name, pickled=pickled_weights)
    return model


def _located(name: str, cache_directory: Path, *, fetch: bool, pickled: bool) -> ClipModel:
    if name.startswith(HUB_PREFIX):
        name = name.removeprefix(HUB_PREFIX)
    else:
        directory = Path(name.removeprefix("local-dir:")).expanduser()
        if name.startswith("local-dir:") or (directory / CONFIG_FILE).is_file():
            return _from_directory(name.removeprefix("local-dir:"), directory)
    if name in OPENAI_NAMES:
        return _from_tag(OPENAI_NAMES[name], "openai", None, cache_directory, fetch=fetch, pickled=pickled)
    parts = _architecture_and_tag(name)
    if parts is not None:
        return _from_tag(*parts, cache_directory, fetch=fetch, pickled=pickled)
    repository = name.removeprefix("hf-hub:")
    if is_repository(repository) and (name.startswith("hf-hub:") or not _CLIP_LIKE.match(name)):
        return _from_repository(repository, fetch=fetch, pickled=pickled)
    raise UnknownModelError(f"no CLIP model {name!r}{_near(name, _known_names())}. {_REMEDY}")


def _architecture_and_tag(name: str) -> tuple[str, str, str | None] | None:
    """Return ("ViT-B-32", "openai", None) for `ViT-B/32:openai`; None where no architecture of open_clip is named.

    The tag is empty for an architecture alone. The file of weights is as the name has it: nothing on disk is looked at.
    """
    for separator in (":", "/"):
        head, found, rest = name.partition(separator) if separator == ":" else name.rpartition(separator)
        architecture = head.replace("/", "-")
        if found and architecture in architectures():
            tag, _, file = rest.partition(":")
            return architecture, tag, file or None
    bare = name.replace("/", "-")
    return (bare, "", None) if bare in architectures() else None


def _from_tag(
    architecture: str, tag: str, file: str | None, cache_directory: Path, *, fetch: bool, pickled: bool
) -> ClipModel:
    entries = pretrained_models(cache_directory).get(architecture, {})
    entry = entries.get(_tag(tag))
    if entry is None:
        names = [f"{architecture}:{each}" for each in entries]
        problem = (
            f"{architecture} has no weights called {tag!r}" if tag else f"{architecture} needs the name of weights"
        )
        listed = f"; open_clip knows {', '.join(names)}" if names else "; open_clip knows none"
        raise UnknownModelError(f"{problem}{listed}. {_REMEDY}")
    own_weights = None if file is None else _existing_file(file, f"{architecture}:{tag}")
    config = dict(_read_architecture(architecture))
    # Weights trained with QuickGELU come under architectures whose configuration has GELU, `ViT-B-32:openai` first
    # among them. Loaded so, nothing fails, and every vector is wrong.
    config["quick_gelu"] = bool(config.get("quick_gelu") or entry.get("quick_gelu"))
    name = f"{architecture}:{_tag(tag)}"
    return ClipModel(
        name=name,
        weights=own_weights or _weights_of_entry(name, entry, fetch=fetch, pickled=pickled),
        config=config,
        preprocessing=_preprocessing(config, entry, name),
    )


def _existing_file(file: str, name: str) -> Path:
    """Return the file that holds the weights `name`. Raises `UnknownModelError`."""
    reason = ""
    try:
        path = Path(file).expanduser()
        if path.is_file():
            return path
    # Too long, no permission; the home of a user that there is not; a NUL.
    except (OSError, RuntimeError, ValueError) as error:
        reason = f": {error.strerror if isinstance(error, OSError) else error}"
    raise UnknownModelError(f"there is no file {file[:200]!r} with the weights of {name}{reason}")


def _from_directory(name: str, directory: Path) -> ClipModel:
    if not directory.is_dir():
        raise UnknownModelError(f"there is no model folder {name!r}")
    config, settings = _read_config(directory / CONFIG_FILE)
    weights = next((directory / file for file in WEIGHT_FILES if (directory / file).is_file()), None)
    if weights is None:
        raise UnknownModelError(f"{directory} holds no weights ({', '.join(HUB_WEIGHT_FILES)})")
    own_tokenizer = bool(config["text_cfg"].get("hf_tokenizer_name"))
    files = [directory / file for file in TOKENIZER_FILES] if own_tokenizer else []
    return ClipModel(
        name=name,
        weights=weights,
        config=config,
        preprocessing=_preprocessing(config, settings, str(directory)),
        tokenizer_files=tuple(file for file in files if file.is_file()),
        tokenizer_folder=directory,
    )


def _from_repository(repository: str, *, fetch: bool, pickled: bool) -> ClipModel:
    name = f"hf-hub:{repository}"
    config, settings = _read_config(_hub_file(name, repository, (CONFIG_FILE,), fetch=fetch))
    return ClipModel(
        name=name,
        weights=_hub_weights(name, repository, HUB_WEIGHT_FILES, fetch=fetch, pickled=pickled),
        config=config,
        preprocessing=_preprocessing(config, settings, repository),
    )


def _read_config(path: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return `model_cfg` and `preprocess_cfg` of an open_clip_config.json."""
    content = read_json(path)
    config = content.get("model_cfg")
    wanted = ("embed_dim", "vision_cfg", "text_cfg")
    if not isinstance(config, dict) or not all(config.get(name) for name in wanted):
        raise UnknownModelError(f"cannot read {path}: its model_cfg must have {', '.join(wanted)}")
    return config, content.get("preprocess_cfg") or {}


def _preprocessing(config: Mapping[str, Any], settings: Mapping[str, Any], origin: str) -> Preprocessing:
    """Return what the weights' own settings say; open_clip's defaults where they are silent."""
    size = config["vision_cfg"].get("image_size", DEFAULT_IMAGE_SIZE)
    height, width = (size, size) if isinstance(size, int) else size
    interpolation = settings.get("interpolation") or "bicubic"
    resize_mode = settings.get("resize_mode") or "shortest"
    if interpolation == "random":  # an augmentation of training, bicubic otherwise
        interpolation = "bicubic"
    if interpolation not in INTERPOLATIONS or resize_mode not in RESIZE_MODES:
        raise UnknownModelError(f"{origin} wants images resized by {interpolation}/{resize_mode}, which is not known")
    return Preprocessing(
        height=int(height),
        width=int(width),
        mean=_channels(settings.get("mean") or DEFAULT_MEAN),
        std=_channels(settings.get("std") or DEFAULT_STD),
        interpolation=interpolation,
        resize_mode=resize_mode,
        fill_color=int(settings.get("fill_color") or 0),
    )


def _channels(values: float | Iterable[float]) -> tuple[float, float, float]:
    if isinstance(values, (int, float)):
        return (float(values),) * 3
    red, green, blue = (float(value) for value in values)
    return red, green, blue


@cache
def _package() -> Path:
    """Return open_clip's folder. Importing the package would import torch."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        raise MissingExtraError(needs("a CLIP model", "clip"))
    return Path(found.origin).parent


def vocabulary_file() -> Path:
    """Return the merges of OpenAI's byte-pair encoding, as open_clip ships them."""
    return _package() / "bpe_simple_vocab_16e6.txt.gz"


@cache
def architectures() -> frozenset[str]:
    """Return every architecture that open_clip has a configuration for; none where it is not installed."""
    if not is_installed("clip"):
        return frozenset()
    return frozenset(path.stem for path in (_package() / "model_configs").glob("*.json"))


def _read_architecture(architecture: str) -> dict[str, Any]:
    return read_json(_package() / "model_configs" / f"{architecture}.json")


def pretrained_models(cache_directory: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return open_clip's table of weights: architecture -> tag -> where they lie and how their images are prepared.

    open_clip keeps it in a module that imports torch, so it is written down once for each version of the package.
    """
    kept = cache_directory / f"open_clip-{version('open_clip_torch')}.json"
    if kept.is_file():
        table: dict[str, dict[str, dict[str, Any]]] = read_json(kept)
        return table
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained

    table = {}
    for architecture, tag in list_pretrained():
        table.setdefault(architecture, {})[tag] = dict(get_pretrained_cfg(architecture, tag))
    with contextlib.suppress(OSError):  # a read-only or full cache costs the next process the import
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=kept.parent, delete=False) as file:
            json.dump(table, file)
        Path(file.name).replace(kept)
    return table


def _weights_of_entry(name: str, entry: Mapping[str, Any], *, fetch: bool, pickled: bool) -> Path:
    """Return the file of an entry of the table: in the cache of the hub, in that of OpenAI's `clip`, or from the hub.

    Pickled ones, as all that OpenAI's `clip` keeps, only where they may be read.
    """
    repository, _, file = str(entry.get("hf_hub", "")).rpartition("/")  # a trailing slash: the usual file names
    files = (str(Path(file).with_suffix(".safetensors")), file) if file else HUB_WEIGHT_FILES
    downloaded = Path.home() / ".cache" / "clip" / Path(entry.get("url") or "-").name
    if pickled and downloaded.is_file() and not any(_cached_in_hub(repository, each) for each in files if repository):
        return downloaded
    if not repository:
        check_weights([downloaded], name, pickled=pickled)
        raise UnknownModelError(f"{name} is not on the Hugging Face hub and not at {downloaded}. {_REMEDY}")
    return _hub_weights(name, repository, files, fetch=fetch, pickled=pickled)


def _hub_weights(name: str, repository: str, files: Sequence[str], *, fetch: bool, pickled: bool) -> Path:
    """Return the weights of a repository: safetensors where it has some, pickled ones only where they may be read."""
    safe = [file for file in files if file.endswith(SAFE_WEIGHTS)]
    if pickled:
        return _hub_file(name, repository, files, fetch=fetch)
    try:
        return _hub_file(name, repository, safe, fetch=fetch)
    except NoSuchFileError:  # the hub answered: it has no safetensors
        check_weights([Path(file) for file in files], name, pickled=pickled)
        raise


def cached_clip_models() -> list[tuple[str, Path]]:
    """Name and folder of each repository of a CLIP model in the local Hugging Face caches."""
    found: dict[str, Path] = {}
    for hub_cache in hub_caches():
        for folder in sorted(hub_cache.glob("models--*")):
            repository = folder.name.removeprefix("models--").replace("--", "/")
            config = _cached_in_hub(repository, CONFIG_FILE)
            weights = [_cached_in_hub(repository, file) for file in HUB_WEIGHT_FILES]
            if config is not None and any(weights):
                found[f"hf-hub:{repository}"] = config.parent
    return sorted(found.items())


def _is_repository(name: str) -> bool:
    return "/" in name and is_repository(name)


def _cached_in_hub(repository: str, file: str) -> Path | None:
    """Return a file of the snapshot that `main` points to, or else of any, as huggingface_hub lays it out."""
    for hub_cache in hub_caches():
        folder = hub_cache / f"models--{repository.replace('/', '--')}"
        reference = folder / "refs" / "main"
        name = reference.read_text().strip() if reference.is_file() else "*"
        for snapshot in sorted((folder / "snapshots").glob(name)):
            if (snapshot / file).is_file():
                return snapshot / file
    return None


def _hub_file(name: str, repository: str, files: Sequence[str], *, fetch: bool) -> Path:
    """Return the first of `files` that the repository of the model `name` has, from the local cache or the hub."""
    for file in files:
        cached = _cached_in_hub(repository, file)
        if cached is not None:
            return cached
    if not fetch:
        raise ModelNotFetchedError(not_fetched(name))
    return _fetched(name, repository, files)


def tokenizer_repository_folder(model: ClipModel) -> Path:
    """Return the folder with the tokenizer that a model takes from a repository; fetched where it is not here."""
    return _repository_folder(model.name, str(model.text_config["hf_tokenizer_name"]))


def text_tower_config(model: ClipModel) -> Path:
    """Return the configuration of the text tower that a model takes from transformers; fetched likewise."""
    return _hub_file(model.name, str(model.text_config["hf_model_name"]), ("config.json",), fetch=True)


def _repository_folder(name: str, repository: str) -> Path:
    cached = _cached_in_hub(repository, TOKENIZER_PATTERNS[-1])
    if cached is not None:
        return cached.parent
    try:
        return fetch_snapshot(repository, TOKENIZER_PATTERNS, hub_caches()[-1])
    except FetchError as error:
        raise error.as_model_error(_not_had(name, repository, error.reason)) from error


class NoSuchFileError(UnknownModelError):
    """The hub has the repository, and in it none of the files that were asked for."""


def _fetched(name: str, repository: str, files: Sequence[str]) -> Path:
    reason: FetchError | None = None
    for file in files:
        try:
            return fetch_file(repository, file, hub_caches()[-1])
        except FetchError as error:
            reason = error
            if not error.no_such_file:
                break  # only where the hub answered that there is no such file may it have the next one
    assert reason is not None, "at least one file is asked for"
    message = _not_had(name, repository, reason.reason)
    raise NoSuchFileError(message) if reason.no_such_file else reason.as_model_error(message) from reason


def _not_had(name: str, repository: str, reason: str) -> str:
    return (
        f"no CLIP model {name!r}: the repository {repository} is not in the Hugging Face cache "
        f"({', '.join(str(each) for each in hub_caches())}), and the hub did not give it: {reason}. {_REMEDY}"
    )


def _known_names() -> list[str]:
    return [*OPENAI_NAMES, *architectures()]


def _near(name: str, names: Iterable[str]) -> str:
    by_key = {each.lower(): each for each in names}
    head = name.partition(":")[0].lower()
    near = [by_key[key] for key in difflib.get_close_matches(head, by_key, n=3, cutoff=0.6)]
    return f"; did you mean {', '.join(near)}?" if near else ""
