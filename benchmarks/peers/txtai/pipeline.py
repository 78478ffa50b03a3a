"""txtai: an `Embeddings` database with its texts (`content`), as in its documentation of embeddings."""

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
from txtai import Embeddings

from benchmarks.peers.contract import Peer, Settings, main


class Txtai(Peer):
    def __init__(self, model: str, settings: Settings) -> None:
        self._embeddings = Embeddings(
            path=model, content=True, vectors=settings.model_kwargs, **settings.batch("encodebatch")
        )

    def index(self, passages: Sequence[str], folder: Path) -> None:
        self._embeddings.index(passages)

    def vectors(self) -> npt.NDArray[np.float32]:
        flat = faiss.downcast_index(self._embeddings.ann.backend.index)
        stored: npt.NDArray[np.float32] = flat.reconstruct_n(0, flat.ntotal)
        return stored


if __name__ == "__main__":
    main(Txtai)
