"""Haystack: an indexing pipeline of document embedder and writer, as in its documentation of document embedders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from haystack import Document, Pipeline
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersDocumentEmbedder

from benchmarks.peers.contract import Peer, Settings, main


class Haystack(Peer):
    def __init__(self, model: str, settings: Settings) -> None:
        embedder = SentenceTransformersDocumentEmbedder(
            model=model, model_kwargs=settings.model_kwargs, **settings.batch("batch_size")
        )
        self._store = InMemoryDocumentStore()
        self._pipeline = Pipeline()
        self._pipeline.add_component("embedder", embedder)
        self._pipeline.add_component("writer", DocumentWriter(document_store=self._store))
        self._pipeline.connect("embedder", "writer")

    def prepare(self, passages: Sequence[str], folder: Path) -> None:
        self._store.delete_all_documents()

    def index(self, passages: Sequence[str], folder: Path) -> None:
        documents = [Document(content=text, meta={"position": n}) for n, text in enumerate(passages)]
        self._pipeline.run({"embedder": {"documents": documents}})

    def vectors(self) -> npt.NDArray[np.float32]:
        documents = sorted(self._store.filter_documents(), key=lambda document: document.meta["position"])
        return np.asarray([document.embedding for document in documents], dtype=np.float32)


if __name__ == "__main__":
    main(Haystack)
