"""A folder of images, a store and an encoder that tells images by their pixels, for tests of runs over images."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.images.pictures import encoded
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.base import Encoder, EngineChoice, Purpose, Vectors
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.images import CorruptImageError
from vectorize_pipelines.pipeline.files.context import FolderRequest
from vectorize_pipelines.pipeline.files.folder import open_folder
from vectorize_pipelines.pipeline.files.images import ImageReader, gallery_source
from vectorize_pipelines.pipeline.files.stream import ChangeStream
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.generations import EmbeddingConfig
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.filters.expressions import In

REFUSED_RED = 200


class PixelEncoder(Encoder):
    """Gives each image a vector of its own; refuses what is red, as an image that cannot be decoded is refused."""

    def __init__(self, model: str) -> None:
        self.spec = describe_model(model)
        self.choice = EngineChoice("pixels", "cpu", "float32", "for tests")
        self.batches: list[int] = []

    def encode(self, items: Sequence[Any], purpose: Purpose = "document") -> Vectors:
        vectors, errors = self.encode_each(items, purpose)
        assert not errors
        return vectors

    def encode_each(self, items: Sequence[Any], purpose: Purpose = "document") -> tuple[Vectors, dict[int, ItemError]]:
        self.batches.append(len(items))
        contents = [item if isinstance(item, bytes) else item.read_bytes() for item in items]
        errors: dict[int, ItemError] = {n: CorruptImageError("too red") for n, data in enumerate(contents) if red(data)}
        vectors = np.stack([self.vector(data) for data in contents])
        vectors[list(errors)] = np.nan
        return vectors, errors

    def vector(self, data: bytes) -> Vectors:
        seed = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
        vector = np.random.default_rng(seed).normal(size=self.spec.dimension).astype(np.float32)
        return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)

    def close(self) -> None:
        """Nothing to free."""


def picture(red: int, other: int) -> bytes:
    return encoded(Image.new("RGB", (4, 3), (red, other, other)), "PNG")


def red(data: bytes) -> bool:
    pixel = Image.open(BytesIO(data)).convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel[0] == REFUSED_RED


class Gallery:
    """A folder, a store and an encoder."""

    def __init__(self, home: Path, model: str) -> None:
        self.settings = load_settings({"VECTORIZE_HOME": str(home), "VECTORIZE_MODELS__IMAGE": model})
        self.folder = home / "pictures"
        self.folder.mkdir(parents=True)
        self.store = open_store(self.settings.store, self.settings.home)
        self.encoder = PixelEncoder(model)

    @contextmanager
    def _lease(self, model: str) -> Iterator[Encoder]:
        yield self.encoder

    def run(self, path: str | None = None, **changes: Any) -> ChangeStream:
        today = datetime.now(UTC).date()
        given = {"collection": "gallery", "model": self.settings.models.image, "mode": "drain", "allow_empty": True}
        request = FolderRequest(**{**given, "window": (today, today), "run_id": "run", **changes})
        source = gallery_source(self.settings, path or str(self.folder))
        reader = ImageReader(self.settings, EmbeddingConfig(request.model))
        with open_folder(self.settings, request, source, reader, self.store, self._lease) as stream:
            for _ in written(DirectWriter(self.settings, self.store), stream):
                pass
        return stream

    def vectors(self) -> dict[str, Vectors]:
        table = self.store.fetch("gallery", In("modality", ("image",)), ("source_id", "vector"))
        return {
            row["source_id"].rsplit("/", 1)[-1]: np.asarray(row["vector"], dtype=np.float32)
            for row in table.to_pylist()
        }
