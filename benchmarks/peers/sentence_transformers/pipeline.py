"""sentence-transformers itself: `encode`, with no store behind it. Its float32 vectors are everyone's reference."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from benchmarks.peers.contract import Peer, Settings, main


class SentenceTransformers(Peer):
    def __init__(self, model: str, settings: Settings) -> None:
        self._model = SentenceTransformer(model, device="cpu", model_kwargs=settings.model_kwargs)
        self._batch = settings.batch("batch_size")

    def index(self, passages: Sequence[str], folder: Path) -> None:
        self._vectors = self._model.encode(list(passages), **self._batch)

    def vectors(self) -> npt.NDArray[np.float32]:
        return np.asarray(self._vectors, dtype=np.float32)


if __name__ == "__main__":
    main(SentenceTransformers)
