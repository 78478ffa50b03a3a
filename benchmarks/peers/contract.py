"""What every peer's script does around its own few lines: takes a task from stdin, measures, prints the outcome.

Run in the peer's own environment, so it needs the standard library and numpy alone:

stdin   {"passages": file, "model": folder, "folder": to work in, "vectors": file to write, "candidates": […]}
        where the file of passages is {"warm_up": [texts], "passages": [texts]}, and a candidate is
        {"batch_size": n or null, "dtype": name or null}, null being what the peer does unless told otherwise
stdout  in the last line {"seconds": s, "settings": the candidate measured, "tried": [[candidate, texts/s], …]}

Several candidates are tried on the first passages, and the fastest is measured on all of them. Called by
`benchmarks/encoders.py`.
"""

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: Passages on which candidates are compared.
TRIAL = 96


@dataclass(frozen=True)
class Settings:
    """What a peer lets its users set; None leaves its default.

    batch_size  texts that go through the model together
    dtype       torch's name of the precision of weights and activations
    """

    batch_size: int | None = None
    dtype: str | None = None

    def batch(self, argument: str) -> dict[str, Any]:
        """The batch size as an argument of this name; nothing where the default is to stay."""
        return {argument: self.batch_size} if self.batch_size else {}

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """The precision, as transformers takes it; nothing where the default is to stay."""
        return {"dtype": self.dtype} if self.dtype else {}


class Peer(ABC):
    """A system under measurement with its model loaded, as its documentation tells users to set it up."""

    def prepare(self, passages: Sequence[str], folder: Path) -> None:  # noqa: B027 - most have nothing to prepare
        """Lays the passages where the system reads them from, where it takes none from memory. Not measured."""

    @abstractmethod
    def index(self, passages: Sequence[str], folder: Path) -> None:
        """Texts into a new index or store, whole: this is what is measured. `folder` is empty or prepared."""

    @abstractmethod
    def vectors(self) -> npt.NDArray[np.float32]:
        """What the last `index` stored, in the order of its passages; proves that all of them are there."""


Load = Callable[[str, Settings], Peer]


def main(load: Load) -> None:
    """`load` takes the model's folder and the settings."""
    task: dict[str, Any] = json.load(sys.stdin)
    texts = json.loads(Path(task["passages"]).read_text(encoding="utf-8"))
    folder = Path(task["folder"])
    candidates = [Settings(**candidate) for candidate in task["candidates"]]

    def measure(settings: Settings, passages: list[str], name: str) -> tuple[Peer, float]:
        peer = load(task["model"], settings)
        _index(peer, texts["warm_up"], folder / f"{name}-warm-up")
        return peer, _index(peer, passages, folder / name)

    tried: list[tuple[Settings, float]] = []
    if len(candidates) > 1:
        trial = texts["passages"][:TRIAL]
        tried = [
            (settings, len(trial) / measure(settings, trial, f"trial-{number}")[1])
            for number, settings in enumerate(candidates)
        ]
    best = max(tried, key=lambda each: each[1])[0] if tried else candidates[0]
    peer, seconds = measure(best, texts["passages"], "measured")
    vectors = peer.vectors()
    if len(vectors) != len(texts["passages"]):
        raise SystemExit(f"{len(texts['passages'])} passages went in and {len(vectors)} vectors are stored")
    np.save(task["vectors"], vectors)
    rates = [(asdict(settings), rate) for settings, rate in tried]
    print("\n" + json.dumps({"seconds": seconds, "settings": asdict(best), "tried": rates}))


def _index(peer: Peer, passages: list[str], folder: Path) -> float:
    folder.mkdir(parents=True)
    peer.prepare(passages, folder)
    started = time.perf_counter()
    peer.index(passages, folder)
    return time.perf_counter() - started
