"""A model's revision: a hash over everything on disk that decides its vectors, remembered between processes.

Hashing 90 MB takes a tenth of a second and a large model many seconds, so each file's digest is kept with its
size and modification time in one JSON file. Losing or spoiling that file costs time and nothing else. Called
by `models.locate.spec_of`.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from vectorize_pipelines.encoders.models.files import remember
from vectorize_pipelines.errors import UnknownModelError

REMEMBERED = "revisions.json"

_SUFFIXES = frozenset({".json", ".txt", ".model", ".safetensors", ".bin", ".vocab"})

_WEIGHTS = frozenset({".safetensors", ".bin"})

#: Files of a model's folder that say how it was trained or are copies of it for other runtimes.
_IGNORED = frozenset({"data_config.json", "eval_results.json", "train_results.json", "all_results.json"}) | frozenset(
    {"trainer_state.json", "training_args.bin", "optimizer.bin", "scheduler.bin", "openvino_model.bin"}
)

#: A file changed this recently may change again within the same tick of its modification time.
_SETTLED_SECONDS = 2.0

#: path -> size, modification time in nanoseconds, digest
_Digests: TypeAlias = dict[str, tuple[int, int, str]]


def revision(directory: Path, module_directories: Iterable[Path], cache_directory: Path | None) -> str:
    """Return 12 hexadecimal digits of blake2b over weights, configuration and tokenizer in `directory`.

    The same files give the same revision wherever they lie. Raises `UnknownModelError` without weights.
    """
    files = deciding_files(directory, module_directories)
    return revision_of({path.relative_to(directory).as_posix(): path for path in files}, cache_directory)


def revision_of(files: Mapping[str, Path], cache_directory: Path | None, settings: str = "") -> str:
    """Return 12 hexadecimal digits of blake2b over the contents of `files` under these names, and over `settings`."""
    remembered = _load(cache_directory)
    current: _Digests = {}
    total = hashlib.blake2b(settings.encode(), digest_size=6)
    for name, path in files.items():
        resolved = str(path.resolve())
        status = path.stat()
        known = remembered.get(resolved)
        if known is None or known[:2] != (status.st_size, status.st_mtime_ns):
            known = (status.st_size, status.st_mtime_ns, _digest(path))
        current[resolved] = known
        total.update(f"{name}\0{known[2]}\n".encode())
    if cache_directory is not None and any(remembered.get(path) != known for path, known in current.items()):
        _save(cache_directory, {**remembered, **current})
    return total.hexdigest()


def weight_files(directory: Path, module_directories: Iterable[Path]) -> list[Path]:
    """Return the files that hold the weights of the model in `directory`. Raises `UnknownModelError` without any."""
    return [path for path in deciding_files(directory, module_directories) if path.suffix in _WEIGHTS]


def deciding_files(directory: Path, module_directories: Iterable[Path]) -> list[Path]:
    """Return the files that decide the vectors. Of weights in two formats, those that transformers prefers."""
    files: set[Path] = set()
    for folder in {directory, *module_directories}:
        if not folder.is_dir():
            continue  # a module without parameters, such as Normalize, often has no folder
        found = [path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file()]
        found = [path for path in found if path.name not in _IGNORED]
        if any(path.suffix == ".safetensors" for path in found):
            found = [path for path in found if path.suffix != ".bin" and path.name != "pytorch_model.bin.index.json"]
        files.update(found)
    if not any(path.suffix in _WEIGHTS for path in files):
        raise UnknownModelError(f"{directory} holds no weights (model.safetensors or pytorch_model.bin)")
    return sorted(files)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _load(cache_directory: Path | None) -> _Digests:
    if cache_directory is None:
        return {}
    try:
        entries = json.loads((cache_directory / REMEMBERED).read_bytes())
        return {str(path): (int(size), int(time_ns), str(digest)) for path, (size, time_ns, digest) in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _save(cache_directory: Path, digests: _Digests) -> None:
    """Replace the file as a whole; two processes at once lose one's digests, never the file's form."""
    newest = time.time_ns() - int(_SETTLED_SECONDS * 1e9)
    kept = {path: known for path, known in digests.items() if known[1] < newest and Path(path).exists()}
    remember(cache_directory / REMEMBERED, json.dumps(kept, indent=1))
