"""CocoIndex: a folder of text files into LanceDB, as in its example of text embedding with LanceDB.

Its own embedder lets users set neither batch size nor precision; a function of one's own that takes batches, as its
documentation of functions shows, does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cocoindex as coco
import lancedb as lancedb_client
import numpy as np
import numpy.typing as npt
from cocoindex.connectors import lancedb, localfs
from cocoindex.ops.sentence_transformers import SentenceTransformerEmbedder
from cocoindex.ops.text import RecursiveSplitter
from cocoindex.resources.file import PatternFilePathMatcher
from cocoindex.resources.schema import VectorSchema
from sentence_transformers import SentenceTransformer

from benchmarks.peers.contract import Peer, Settings, main

Embed = Callable[[str], Awaitable[npt.NDArray[np.float32]]]

LANCE_DB = coco.ContextKey("lance_db")
SPLITTER = RecursiveSplitter()

#: Texts that one call of the model is given at least, for it to sort by length.
WINDOW = 256


@dataclass
class Row:
    filename: str
    chunk_start: int
    text: str
    embedding: Annotated[npt.NDArray[np.float32], VectorSchema(dtype=np.dtype(np.float32), size=384)]


def embedding_in_batches(model: str, settings: Settings) -> Embed:
    """An embedder of one's own."""
    transformer = SentenceTransformer(model, device="cpu", model_kwargs=settings.model_kwargs)
    batch = settings.batch("batch_size")

    @coco.fn.as_async(batching=True, runner=coco.GPU, max_batch_size=max(WINDOW, settings.batch_size or 0))
    def embed(texts: list[str]) -> list[npt.NDArray[np.float32]]:
        vectors = transformer.encode(texts, normalize_embeddings=True, show_progress_bar=False, **batch)
        return list(np.asarray(vectors, dtype=np.float32))

    embedder: Embed = embed
    return embedder


class CocoIndex(Peer):
    def __init__(self, model: str, settings: Settings) -> None:
        if settings == Settings():
            self._embed: Embed = SentenceTransformerEmbedder(model).embed
        else:
            self._embed = embedding_in_batches(model, settings)

    def prepare(self, passages: Sequence[str], folder: Path) -> None:
        (folder / "texts").mkdir()
        for n, text in enumerate(passages):
            (folder / "texts" / f"{n:06}.md").write_text(text, encoding="utf-8")

    def index(self, passages: Sequence[str], folder: Path) -> None:
        self._folder = folder
        embed = self._embed

        @coco.fn
        async def process_chunk(chunk: Any, filename: str, table: Any) -> None:
            row = Row(filename, chunk.start.char_offset, chunk.text, await embed(chunk.text))
            table.declare_row(row=row)

        @coco.fn(memo=True)
        async def process_file(file: Any, table: Any) -> None:
            chunks = SPLITTER.split(await file.read_text(), chunk_size=2000, chunk_overlap=500, language="markdown")
            await coco.map(process_chunk, chunks, file.file_path.path.name, table)

        @coco.fn
        async def app_main(texts: Path) -> None:
            schema = await lancedb.TableSchema.from_class(Row, primary_key=["filename", "chunk_start"])
            table = await lancedb.mount_table_target(LANCE_DB, table_name="passages", table_schema=schema)
            files = localfs.walk_dir(texts, path_matcher=PatternFilePathMatcher(included_patterns=["**/*.md"]))
            await coco.mount_each(process_file, files.items(), table)

        async def update() -> None:
            context = coco.ContextProvider()
            context.provide(LANCE_DB, await lancedb.connect_async(str(folder / "lancedb")))
            environment = coco.Environment(
                coco.Settings(db_path=folder / "state"), name=folder.name, context_provider=context
            )
            app = coco.App(coco.AppConfig(name="passages", environment=environment), app_main, folder / "texts")
            await app.update()

        asyncio.run(update())

    def vectors(self) -> npt.NDArray[np.float32]:
        rows = lancedb_client.connect(str(self._folder / "lancedb")).open_table("passages").to_arrow().to_pylist()
        rows.sort(key=lambda row: (row["filename"], row["chunk_start"]))
        return np.asarray([row["embedding"] for row in rows], dtype=np.float32)


if __name__ == "__main__":
    main(CocoIndex)
