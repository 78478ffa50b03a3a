"""The files that an engine makes of a model once: there whole or not at all, and measured on every chip that uses them.

For OpenVINO that is an export with the model's own vectors of a sample, for the engine `torch` these vectors alone.

    description.json  what the engine says of it (`model`, `engine`, …), the sizes of the other files; `refusal`
                      where the model cannot be exported
    measurement.json  by chip and version of what computes on it, part of the model and precision: how near that comes
                      to the model's own float32 vectors

Used by what fills it (`engines/openvino/export.py`, `engines/open_clip/export.py`, `engines/torch/precision.py`), by
engines that forecast what they would do, and by `vectorize models list`. Reading one imports nothing heavy.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vectorize_pipelines.encoders.engines.equality import Agreement
from vectorize_pipelines.encoders.errors import EngineRefusedError
from vectorize_pipelines.encoders.hardware.devices import device_identity
from vectorize_pipelines.encoders.models.files import read_json, write_whole

logger = logging.getLogger(__name__)

#: Precisions, fastest first.
FASTEST_FIRST = ("bfloat16", "float16", "float32")


#: Whose vectors a model's own ones are; by default sentence-transformers', else numpy's (`reference.py`).
SENTENCE_TRANSFORMERS_REFERENCE = "sentence-transformers"
NUMPY_REFERENCE = "numpy"

#: A file with this ending is a graph of OpenVINO.
_GRAPH = ".xml"


class MeasuredFolder:
    """The folder at its place on disk, made or not. Safe when several processes use it at once.

    package  that computes: `openvino` or `torch`; another version of it measures again
    device   that it computes on; never `auto`
    """

    def __init__(self, directory: Path, package: str, device: str) -> None:
        self.directory = directory
        self._package = package
        self._device = device

    def beside(self, name: str) -> "MeasuredFolder":
        """Return the folder for the same beside this one, whose name ends with `name`."""
        return MeasuredFolder(self.directory.with_name(f"{self.directory.name}-{name}"), self._package, self._device)

    @property
    def reference(self) -> str:
        """The maker of the vectors that measurements are held against, for people."""
        made_by = self.description.get("reference", SENTENCE_TRANSFORMERS_REFERENCE)
        return "a forward pass in numpy" if made_by == NUMPY_REFERENCE else str(made_by)

    @property
    def machine(self) -> str:
        """The machine that a measurement holds for. Raises `PackageNotFoundError` where nothing could compute it."""
        return f"{device_identity(self._device)}, {self._package} {version(self._package)}"

    @property
    def description(self) -> dict[str, Any]:
        """The content of description.json; {} where nothing was made."""
        return read_json(self.directory / "description.json")

    @property
    def complete(self) -> bool:
        """True where every file is there in its full size."""
        sizes: dict[str, int] | None = self.description.get("sizes")
        if sizes is None:
            return False
        files = {self.directory / name: size for name, size in sizes.items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in files.items())

    @property
    def exported(self) -> bool:
        """True where a graph lies here, and not only what a measurement needs."""
        return any(name.endswith(_GRAPH) for name in self.description.get("sizes", {}))

    @property
    def size(self) -> int:
        """The bytes on disk."""
        return sum(path.stat().st_size for path in self.directory.iterdir() if path.is_file())

    @property
    def measured(self) -> dict[str, dict[str, Agreement]]:
        """The nearness to the model's own vectors on this chip, by part of the model and precision."""
        try:
            machine = self.machine
        except PackageNotFoundError:
            return {}
        found: dict[str, dict[str, Any]] = read_json(self.directory / "measurement.json").get(machine, {})
        return {
            part: {precision: Agreement(**values) for precision, values in by_precision.items()}
            for part, by_precision in found.items()
        }

    def precisions(self, wanted: str) -> dict[str, str] | None:
        """Return the precision that a load would use, by part, as far as known without measuring; else None."""
        chosen = {part: _fastest(by_precision, wanted) for part, by_precision in self.measured.items()}
        known = {part: precision for part, precision in chosen.items() if precision is not None}
        return known if known and len(known) == len(chosen) else None

    def refusal(self, wanted: str) -> str | None:
        """Return why a load in this precision would be refused, as far as it is known without making or measuring."""
        if "refusal" in self.description:
            return str(self.description["refusal"])
        last = "float32" if wanted == "auto" else wanted
        for part, measured in self.measured.items():
            tried = measured if wanted == "auto" else {name: each for name, each in measured.items() if name == wanted}
            if last in tried and not any(each.equal for each in tried.values()):
                return _unequal(part, tried)
        return None

    def make(self, write: Callable[[Path], Mapping[str, Any]]) -> None:
        """Let `write` fill a folder beside the place and move it there, unless it is complete already.

        What `write` returns becomes description.json. Other processes wait meanwhile. Raises `OSError`.
        """
        if self.complete:
            return
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if not self.complete:
                self._write_aside(write)

    def fastest_equal(self, part: str, wanted: str, native: Sequence[str], measure: Callable[[str], Agreement]) -> str:
        """Return the precision to run `part` in: the fastest measured equal here, or `wanted` unless that is auto.

        `native` are the precisions of this chip, fastest first, float32 last. `measure` is called for one that has not
        been measured here, and its result kept. Raises `EngineRefusedError` with the figures where none is equal.
        """
        if wanted not in ("auto", *native):
            raise EngineRefusedError(f"this chip computes in {', '.join(native)}, not in {wanted}")
        tried: dict[str, Agreement] = {}
        for precision in native if wanted == "auto" else (wanted,):
            known = self.measured.get(part, {}).get(precision)
            tried[precision] = known or self._measure(part, precision, measure)
            if tried[precision].equal:
                return precision
        raise EngineRefusedError(_unequal(part, tried))

    def account(self, part: str, precision: str) -> str:
        """Return what was measured: `bfloat16, mean cosine 0.999985, worst 0.99997`, and what was not equal."""
        measured = self.measured[part]
        others = [f"{name} is not equal: {found}" for name, found in measured.items() if not found.equal]
        return "; ".join([f"{precision}, {measured[precision]}", *others])

    def discard(self) -> None:
        """Remove what is damaged, so that the next use makes it again."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _lock(self) -> Any:
        from filelock import FileLock

        return FileLock(self.directory.with_name(f"{self.directory.name}.lock"))

    def _write_aside(self, write: Callable[[Path], Mapping[str, Any]]) -> None:
        partial = self.directory.with_name(f".partial-{self.directory.name}")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        try:
            description = {**write(partial), "package": self._package}
            description["sizes"] = {path.name: path.stat().st_size for path in partial.iterdir()}
            write_whole(partial / "description.json", json.dumps(description, indent=1))
            shutil.rmtree(self.directory, ignore_errors=True)
            partial.rename(self.directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _measure(self, part: str, precision: str, measure: Callable[[str], Agreement]) -> Agreement:
        with self._lock():
            agreement = measure(precision)
            logger.info("%s, %s in %s: %s", self.description.get("model"), part, precision, agreement)
            file = self.directory / "measurement.json"
            content = read_json(file)
            content.setdefault(self.machine, {}).setdefault(part, {})[precision] = asdict(agreement)
            write_whole(file, json.dumps(content, indent=1))
        return agreement


def known_folders(cache_directory: Path) -> list[MeasuredFolder]:
    """Return every complete folder under the cache directory, of any engine, with what was measured on the CPU."""
    found = []
    for path in sorted(cache_directory.glob("*/*/description.json")):
        folder = MeasuredFolder(path.parent, str(read_json(path).get("package")), "cpu")
        if folder.complete and not path.parent.name.startswith("."):
            found.append(folder)
    return found


def _unequal(part: str, tried: Mapping[str, Agreement]) -> str:
    figures = "; ".join(f"{precision}: {found}" for precision, found in tried.items())
    return f"its {part} vectors are not equal to the model's own ({figures})"


def _fastest(measured: Mapping[str, Agreement], wanted: str) -> str | None:
    order = FASTEST_FIRST if wanted == "auto" else (wanted,)
    return next((each for each in order if each in measured and measured[each].equal), None)
