"""A folder of documents, a store and an encoder that counts, for tests of runs over a folder."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.base import Encoder, EngineChoice, Purpose, Vectors
from vectorize_pipelines.pipeline.files.context import FolderRequest
from vectorize_pipelines.pipeline.files.documents import DocumentReader, corpus_source
from vectorize_pipelines.pipeline.files.folder import open_folder
from vectorize_pipelines.pipeline.files.stream import ChangeStream
from vectorize_pipelines.pipeline.writing import DirectWriter, write_batch
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, Settings, load_settings
from vectorize_pipelines.state.generations import EmbeddingConfig
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore

COLLECTION = "corpus"
DAY = datetime(2024, 3, 1, 12, tzinfo=UTC)


class CountingEncoder(Encoder):
    """Gives each text a vector of its own, the same every time, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.spec = describe_model(DEFAULT_TEXT_MODEL)
        self.choice = EngineChoice("counting", "cpu", "float32", "for tests")
        self.texts: list[str] = []

    def encode(self, items: Sequence[Any], purpose: Purpose = "document") -> Vectors:
        self.texts.extend(items)
        vectors = np.stack([self.vector(text) for text in items])
        return vectors.astype(np.float32)

    def vector(self, text: str) -> Vectors:
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
        vector = np.random.default_rng(seed).normal(size=self.spec.dimension).astype(np.float32)
        return vector / np.linalg.norm(vector)

    def close(self) -> None:
        """Nothing to free."""


@dataclass
class Installation:
    """A folder, a store and an encoder."""

    settings: Settings
    folder: Path
    store: VectorStore
    encoder: CountingEncoder = field(default_factory=CountingEncoder)

    def open(self, path: Path | str | None = None, **changes: Any) -> ChangeStream:
        today = datetime.now(UTC).date()
        given = {"collection": COLLECTION, "model": DEFAULT_TEXT_MODEL, "mode": "drain", "allow_empty": True}
        request = FolderRequest(**{**given, "window": (today, today), "run_id": "run", **changes})
        source = corpus_source(self.settings, str(path or self.folder))
        reader = DocumentReader(self.settings, EmbeddingConfig(request.model))
        return open_folder(self.settings, request, source, reader, self.store, self._lease)

    @contextmanager
    def _lease(self, model: str) -> Iterator[Encoder]:
        yield self.encoder

    def run(self, path: Path | str | None = None, *, report: bool = True, **changes: Any) -> ChangeStream:
        with self.open(path, **changes) as stream:
            for batch in stream:
                write_batch(DirectWriter(self.settings, self.store), batch)
            if report:
                stream.reported()
        return stream

    def write(self, name: str, text: str, at: datetime = DAY) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        os.utime(file, (at.timestamp(), at.timestamp()))

    def rows(self) -> dict[tuple[str, int], tuple[Any, ...]]:
        """What the store holds, by document and chunk: everything but the lineage."""
        columns = ("source_id", "item_index", "text", "start", "end", "occurred_at", "partition", "metadata", "vector")
        rows: dict[tuple[str, int], tuple[Any, ...]] = {}
        for batch in self.store.scan(COLLECTION, columns):
            for row in batch.to_pylist():
                key = (os.path.relpath(row["source_id"], self.folder), row["item_index"])
                assert key not in rows, f"{key} is there twice"
                vector = np.asarray(row["vector"], dtype=np.float32)
                assert np.array_equal(vector, self.encoder.vector(row["text"])), f"{key} has another text's vector"
                rows[key] = (
                    row["text"],
                    row["start"],
                    row["end"],
                    row["occurred_at"],
                    row["partition"],
                    row["metadata"],
                )
        return rows


def install(home: Path, cache: str = "off") -> Installation:
    """Without the embedding cache, what is encoded shows what the store and the manifest were able to say."""
    settings = load_settings(
        {
            "VECTORIZE_HOME": str(home),
            "VECTORIZE_DOCUMENTS__CHUNK_TOKENS": "32",
            "VECTORIZE_DOCUMENTS__OVERLAP_TOKENS": "0",
            "VECTORIZE_CACHE__ENABLED": cache,
        }
    )
    folder = home / "docs"
    folder.mkdir(parents=True)
    return Installation(settings, folder, open_store(settings.store, settings.home))


def first_run_over(installation: Installation, home: Path) -> Installation:
    """Return another installation, which has ingested for the first time what lies in this one's folder now."""
    fresh = install(home)
    shutil.rmtree(fresh.folder)
    shutil.copytree(installation.folder, fresh.folder)
    fresh.run()
    return fresh


def paragraphs(*numbers: int) -> str:
    """Each number is a paragraph that fills a chunk of its own."""
    return "\n\n".join(f"Paragraph {n} tells of a journey to the island number {n}. " * 2 for n in numbers)
