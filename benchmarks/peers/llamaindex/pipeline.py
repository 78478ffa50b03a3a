"""LlamaIndex: documents into a `VectorStoreIndex` with `HuggingFaceEmbedding`, as in its documentation of indexing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llama_index.core import Document, VectorStoreIndex
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

from benchmarks.peers.contract import Peer, Settings, main


class LlamaIndex(Peer):
    def __init__(self, model: str, settings: Settings) -> None:
        self._embedding = HuggingFaceEmbedding(
            model_name=model, device="cpu", model_kwargs=settings.model_kwargs, **settings.batch("embed_batch_size")
        )

    def index(self, passages: Sequence[str], folder: Path) -> None:
        documents = [Document(text=text, doc_id=str(n)) for n, text in enumerate(passages)]
        self._index = VectorStoreIndex.from_documents(documents, embed_model=self._embedding)

    def vectors(self) -> npt.NDArray[np.float32]:
        data = self._index.vector_store.data
        nodes = sorted(data.embedding_dict, key=lambda node: int(data.text_id_to_ref_doc_id[node]))
        return np.asarray([data.embedding_dict[node] for node in nodes], dtype=np.float32)


if __name__ == "__main__":
    main(LlamaIndex)
