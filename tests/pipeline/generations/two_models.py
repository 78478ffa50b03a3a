"""Collections that get another model: two models without weights, and everything that writes, in this process."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from vectorize_pipelines.core.items import Item, Modality, content_hash
from vectorize_pipelines.core.records import make_records, record_id
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.base import Encoder, EncoderSpec, EngineChoice, Purpose, Vectors
from vectorize_pipelines.pipeline.batch import EmbeddingBatch
from vectorize_pipelines.pipeline.generations.begin import TRIAL, Wanted
from vectorize_pipelines.pipeline.generations.stream import ReembeddingStream, open_reembedding
from vectorize_pipelines.pipeline.generations.writer import GenerationWriter
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.pipeline.writing import write_batch, written
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, Settings
from vectorize_pipelines.state.generations import Generations
from vectorize_pipelines.stores.base import Collection, VectorStore
from vectorize_pipelines.stores.filters.expressions import Filter

COLLECTION = "articles"
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
#: The old model, and the new one: the same name, but vectors of another length, so another model to everybody.
OLD, NEW = 32, 48


def spec_of(dimension: int) -> EncoderSpec:
    return describe_model(DEFAULT_TEXT_MODEL, dimension=dimension)


class HashEncoder(Encoder):
    """Gives each content a vector of its own by each model, and remembers what it was asked for, a trial apart."""

    def __init__(self, dimension: int) -> None:
        self.spec = spec_of(dimension)
        self.choice = EngineChoice("hash", "cpu", "float32", "for tests")
        self.asked: list[Any] = []

    def encode(self, items: Sequence[Any], purpose: Purpose = "document") -> Vectors:
        self.asked.extend(item for item in items if item != TRIAL)
        return np.stack([vector_of(item, self.spec.dimension) for item in items]).astype(np.float32)

    def close(self) -> None:
        """Nothing to free."""


def vector_of(content: str | bytes, dimension: int) -> Vectors:
    data = content.encode() if isinstance(content, str) else content
    seed = int.from_bytes(hashlib.blake2b(data + bytes([dimension]), digest_size=8).digest())
    vector = np.random.default_rng(seed).normal(size=dimension).astype(np.float32)
    return vector / np.linalg.norm(vector)


@dataclass
class Writers:
    """What writes to a collection: batches as a run of requests makes them, and reembedding runs."""

    settings: Settings
    store: VectorStore
    encoders: dict[int, HashEncoder] = field(default_factory=lambda: {each: HashEncoder(each) for each in (OLD, NEW)})

    @contextmanager
    def lease(self, model: str, dimension: int | None) -> Iterator[Encoder]:
        yield self.encoders[dimension or 0]

    def begin(self) -> None:
        """A collection of the old model."""
        self.store.ensure_collection(COLLECTION, spec_of(OLD))

    def generations(self) -> Generations:
        return Generations.open(self.settings)

    def batch(
        self, texts: dict[str, str], *, stale: Sequence[Filter] = (), dimension: int = OLD, day: int = 0
    ) -> EmbeddingBatch:
        """Source id -> text, as a batch of a run that embeds with the model of `dimension`."""
        items = [
            Item(name, 0, Modality.TEXT, text, None, content_hash(text), NOON + timedelta(days=day))
            for name, text in texts.items()
        ]
        vectors = np.zeros((len(items), dimension), np.float32)
        for n, text in enumerate(texts.values()):
            vectors[n] = vector_of(text, dimension)
        days = [item.occurred_at.date().isoformat() for item in items]
        records = make_records(
            [record_id(COLLECTION, item.source_id, 0) for item in items],
            items,
            days,
            vectors,
            [NOON] * len(items),
            models=[spec_of(dimension).fingerprint] * len(items),
            run_id="run",
        )
        physical = next(each.physical for each in self._collections() if each.dimension == dimension)
        return EmbeddingBatch(COLLECTION, lambda _: None, records, stale, Totals(), {}, lambda: None, physical=physical)

    def _collections(self) -> list[Collection]:
        return [each for each in self.store.collections() if each.physical.startswith(f"{COLLECTION}__")]

    def mirrors(self) -> GenerationWriter:
        return GenerationWriter(self.settings, self.store, self.lease)

    def write(self, texts: dict[str, str], **given: Any) -> None:
        with closing(self.mirrors()) as mirrors:
            write_batch(mirrors, self.batch(texts, **given))

    def reembed(self, days: Sequence[str] | None = None, **wanted: Any) -> ReembeddingStream:
        """A whole run."""
        asked = Wanted(DEFAULT_TEXT_MODEL, **{"dimension": NEW, **wanted})
        stream = open_reembedding(self.settings, self.store, COLLECTION, asked, days, "reembedding", self.lease)
        with stream, closing(self.mirrors()) as mirrors:
            for _ in written(mirrors, stream):
                pass
        return stream

    def texts(self, name: str = COLLECTION) -> dict[str, str]:
        """Source id -> text of what a collection holds; every vector is that of its text by the collection's model."""
        dimension = self.store.collection(name).dimension
        found: dict[str, str] = {}
        for batch in self.store.scan(name, ("source_id", "text", "model", "vector")):
            for row in batch.to_pylist():
                assert row["source_id"] not in found
                assert row["model"].startswith(spec_of(dimension).fingerprint)
                np.testing.assert_allclose(row["vector"], vector_of(row["text"], dimension), atol=1e-5)
                found[row["source_id"]] = row["text"]
        return found

    def physical(self, dimension: int) -> str:
        return next(each.physical for each in self._collections() if each.dimension == dimension)


def installed(home: Path, store: VectorStore | None = None, **environment: str) -> Writers:
    from vectorize_pipelines.settings import load_settings
    from vectorize_pipelines.stores import open_store

    settings = load_settings({"VECTORIZE_HOME": str(home), "VECTORIZE_CACHE__ENABLED": "off", **environment})
    writers = Writers(settings, store or open_store(settings.store, settings.home))
    writers.begin()
    return writers
