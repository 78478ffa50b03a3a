"""How images become items: one a file, its content read here for its hash and decoded by the encoder.

`gallery_source` and `ImageReader` are what `pipeline.folder` needs for a folder of images. Called by the asset
`gallery_embeddings`, the sensor for new files and `vectorize doctor`.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from datetime import datetime
from typing import Self

from vectorize_pipelines import home
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.errors import ItemError, SettingsError
from vectorize_pipelines.generations import InForce, in_force
from vectorize_pipelines.images.decoding import SUPPORTED_SUFFIXES, ImageLimits, read_header
from vectorize_pipelines.items import Item, JsonValue, Modality, content_hash
from vectorize_pipelines.pipeline.folder import Comparison, Reading, compare_folder
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.content import read_content
from vectorize_pipelines.sources.files import FileSource, SourceFile

#: Part of the fingerprint: raise it when the same image gives another item than before.
READER_VERSION = 1

#: Reading waits for disks and networks more than it computes.
READING_THREADS = 8
BYTES_IN_FLIGHT = 64 * 2**20


def gallery_source(settings: Settings, path: str) -> FileSource:
    """The images below a folder, as the settings' patterns choose them. Raises `SourceError`."""
    return FileSource(path, SUPPORTED_SUFFIXES, settings.gallery.include, settings.gallery.exclude)


def gallery_path(settings: Settings) -> str:
    """The configured folder. Raises `SettingsError` where none is."""
    if settings.gallery.path is None:
        raise SettingsError(
            "gallery.path is not set: give the folder of images in VECTORIZE_GALLERY__PATH, or the path in the run's "
            "config"
        )
    return settings.gallery.path


def gallery_default(settings: Settings) -> InForce:
    """What images are embedded with where their collection was never embedded again."""
    return InForce(settings.models.image)


def compare_gallery(settings: Settings) -> Comparison:
    """What a drain run of the configured gallery would find to do; reads no file, asks no store and fetches no model.

    Raises `ModelNotFetchedError` where the model is not on this machine.
    """
    source = gallery_source(settings, gallery_path(settings))
    now = in_force(settings, settings.gallery.collection, "", gallery_default(settings))
    reader = ImageReader(settings, now, fetch=False)
    return compare_folder(settings, settings.gallery.collection, source, reader)


class ImageReader:
    """A `pipeline.folder.Reader` of images. Making one loads no model."""

    may_refuse = True

    def __init__(self, settings: Settings, now: InForce, *, fetch: bool = True):
        """Raises `UnknownModelError`, and `SettingsError` where the model takes no images.

        With `fetch` false a model that is not on this machine raises `ModelNotFetchedError`.
        """
        cache = home.model_cache(settings)
        self.spec = describe_model(now.model, dimension=now.dimension, cache_directory=cache, fetch=fetch)
        if Modality.IMAGE not in self.spec.modalities:
            raise SettingsError(f"{now.model} takes no images; choose a CLIP model in models.image, such as ViT-B/32")
        self.model = self.spec.fingerprint
        reading = f"reader=image/{READER_VERSION}"
        self.fingerprint = f"{self.model} {reading}"
        self.as_now = frozenset(f"{fingerprint} {reading}" for fingerprint in now.same_rows)
        self._limits = ImageLimits(settings.images.max_file_bytes, settings.images.max_pixels)
        self.limits = f"bytes={self._limits.max_bytes} pixels={self._limits.max_pixels}"
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="image")
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets what is being read finish, and nothing more begin."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def read(self, files: Iterable[tuple[SourceFile, str | None]]) -> Iterator[tuple[SourceFile, Reading | ItemError]]:
        """Reads as many files ahead as the limits above allow."""
        for file, reading in self._ahead(files):
            try:
                yield file, reading.result()
            except CancelledError:
                return  # closed from outside
            except ItemError as error:
                yield file, error

    def _ahead(self, files: Iterable[tuple[SourceFile, str | None]]) -> Iterator[tuple[SourceFile, Future[Reading]]]:
        assert self._threads is not None, "the reader is entered before anything is read"
        waiting: deque[tuple[SourceFile, Future[Reading]]] = deque()
        size = 0
        for file, known_hash in files:
            while waiting and (len(waiting) >= 2 * READING_THREADS or size + file.size > BYTES_IN_FLIGHT):
                size -= waiting[0][0].size
                yield waiting.popleft()
            try:
                waiting.append((file, self._threads.submit(self._read, file, known_hash)))
            except RuntimeError:
                return  # closed from outside
            size += file.size
        yield from waiting

    def _read(self, file: SourceFile, known_hash: str | None) -> Reading:
        """Raises `ItemError`s."""
        data = read_content(file.source_id, self._limits.max_bytes + 1)
        digest = content_hash(data)
        if digest == known_hash:
            return Reading(digest, None)
        item = image_item(
            data, digest, self._limits, source_id=file.source_id, uri=file.source_id, occurred_at=file.occurred_at
        )
        return Reading(digest, [item])


def image_item(
    data: bytes,
    digest: str,
    limits: ImageLimits,
    *,
    source_id: str,
    uri: str,
    occurred_at: datetime,
    index: int = 0,
    metadata: Mapping[str, JsonValue] | None = None,
) -> Item:
    """An image's bytes, of which `digest` is the content hash, as an item.

    `metadata` wins over what the image says. Raises `ItemError`s of `images`.
    """
    header = read_header(data, limits)
    return Item(
        source_id=source_id,
        item_index=index,
        modality=Modality.IMAGE,
        text=None,
        uri=uri,
        content_hash=digest,
        occurred_at=occurred_at,
        content=data,  # not the path: the file may be another one by the time it is decoded
        metadata={
            "name": os.path.basename(uri),  # noqa: PTH119 (may be a URI)
            "format": header.format.lower(),
            "width": header.width,
            "height": header.height,
            **(metadata or {}),
        },
    )
