"""The folder of an export: there as a whole or not at all, and measured on every machine that uses it.

    export.json       what the exporter says of it (`model`, `engine`, …), the sizes of the other files; `refusal`
                      where the model cannot be exported
    measurement.json  by machine (CPU and version of OpenVINO), part of the model and precision: how near it comes to
                      the model's own float32 vectors

Used by what exports (`export.py`, `open_clip_export.py`), by engines that forecast what they would do, and by
`vectorize models list`. Reading one imports nothing heavy.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vectorize_pipelines.encoders.engines import EngineRefusedError
from vectorize_pipelines.encoders.equality import Agreement
from vectorize_pipelines.encoders.files import read_json, write_whole
from vectorize_pipelines.encoders.machine import cpu_identity
from vectorize_pipelines.encoders.openvino_graph import native_precisions

logger = logging.getLogger(__name__)

#: Precisions, fastest first.
FASTEST_FIRST = ("bfloat16", "float16", "float32")


def openvino_version() -> str:
    """Without importing it."""
    return version("openvino")


class ExportFolder:
    """An export at its place on disk, made or not. Safe when several processes use it at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def description(self) -> dict[str, Any]:
        """What export.json says; {} where there is no export."""
        return read_json(self.directory / "export.json")

    @property
    def complete(self) -> bool:
        """Whether every file is there in its full size."""
        sizes: dict[str, int] | None = self.description.get("sizes")
        if sizes is None:
            return False
        files = {self.directory / name: size for name, size in sizes.items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in files.items())

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.directory.iterdir() if path.is_file())

    @property
    def measured(self) -> dict[str, dict[str, Agreement]]:
        """By part of the model and precision: how near it came to the model's own vectors on this machine."""
        found: dict[str, dict[str, Any]] = read_json(self.directory / "measurement.json").get(_machine(), {})
        return {
            part: {precision: Agreement(**values) for precision, values in by_precision.items()}
            for part, by_precision in found.items()
        }

    def precisions(self, wanted: str) -> dict[str, str] | None:
        """By part: the precision that a load would use, as far as it is known without measuring; None if it is not."""
        chosen = {part: _fastest(by_precision, wanted) for part, by_precision in self.measured.items()}
        known = {part: precision for part, precision in chosen.items() if precision is not None}
        return known if known and len(known) == len(chosen) else None

    def make(self, write: Callable[[Path], Mapping[str, Any]]) -> None:
        """Lets `write` fill a folder beside the place and moves it there, unless the export is complete already.

        What `write` returns becomes export.json. Other processes wait meanwhile. Raises `OSError`.
        """
        if self.complete:
            return
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if not self.complete:
                self._write_aside(write)

    def fastest_equal(self, part: str, wanted: str, measure: Callable[[str], Agreement]) -> str:
        """The precision to run `part` in: the fastest that was measured equal here, or `wanted` unless that is auto.

        `measure` is called for a precision that has not been measured on this machine, and its result kept. Raises
        `EngineRefusedError` with the figures where none is equal.
        """
        native = native_precisions()
        if wanted not in ("auto", *native):
            raise EngineRefusedError(f"this CPU computes in {', '.join(native)}, not in {wanted}")
        tried: dict[str, Agreement] = {}
        for precision in native if wanted == "auto" else (wanted,):
            known = self.measured.get(part, {}).get(precision)
            tried[precision] = known or self._measure(part, precision, measure)
            if tried[precision].equal:
                return precision
        figures = "; ".join(f"{precision}: {found}" for precision, found in tried.items())
        raise EngineRefusedError(f"its {part} vectors are not equal to the model's own ({figures})")

    def account(self, part: str, precision: str) -> str:
        """What was measured, for people: `bfloat16, mean cosine 0.999985, worst 0.99997`, and what was not equal."""
        measured = self.measured[part]
        others = [f"{name} is not equal: {found}" for name, found in measured.items() if not found.equal]
        return "; ".join([f"{precision}, {measured[precision]}", *others])

    def discard(self) -> None:
        """Removes a damaged export, so that the next use makes it anew."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _lock(self) -> Any:
        from filelock import FileLock

        return FileLock(self.directory.with_name(f"{self.directory.name}.lock"))

    def _write_aside(self, write: Callable[[Path], Mapping[str, Any]]) -> None:
        partial = self.directory.with_name(f".partial-{self.directory.name}")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        try:
            description = write(partial)
            sizes = {path.name: path.stat().st_size for path in partial.iterdir()}
            write_whole(partial / "export.json", json.dumps({**description, "sizes": sizes}, indent=1))
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
            content.setdefault(_machine(), {}).setdefault(part, {})[precision] = asdict(agreement)
            write_whole(file, json.dumps(content, indent=1))
        return agreement


def known_exports(cache_directory: Path) -> list[ExportFolder]:
    """Every complete export under the cache directory, of whichever engine."""
    folders = [path.parent for path in sorted(cache_directory.glob("*/*/export.json"))]
    exports = [ExportFolder(folder) for folder in folders if not folder.name.startswith(".")]
    return [export for export in exports if export.complete]


def _fastest(measured: Mapping[str, Agreement], wanted: str) -> str | None:
    order = FASTEST_FIRST if wanted == "auto" else (wanted,)
    return next((each for each in order if each in measured and measured[each].equal), None)


def _machine() -> str:
    return f"{cpu_identity()}, OpenVINO {openvino_version()}"
