"""Images as items: one a file, its content read here for its hash and decoded by the encoder.

`gallery_source` and `ImageReader` are what `folder` needs for a folder of images. Called by the asset
`gallery_embeddings`, the sensor for new files and `vectorize doctor`.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Self

from vectorize_pipelines.core.items import Modality, content_hash
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.configured import describe_options, image_decoders
from vectorize_pipelines.errors import ItemError, SettingsError
from vectorize_pipelines.images.decoding import SUPPORTED_SUFFIXES
from vectorize_pipelines.images.items import READER_VERSION, image_item
from vectorize_pipelines.images.pool import ImageDecoders
from vectorize_pipelines.pipeline.files.comparison import FolderComparison, compare_folder
from vectorize_pipelines.pipeline.files.reader import Reading
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.content import read_content
from vectorize_pipelines.sources.files import FileSource, SourceFile
from vectorize_pipelines.sources.reading_threads import ReadingThreads
from vectorize_pipelines.state.generations import EmbeddingConfig, resolve_embedding_config

#: Reading waits for disks and networks more than it computes.
READING_THREADS = 8
BYTES_IN_FLIGHT = 64 * 2**20


def gallery_source(settings: Settings, path: str, *, follow_links: bool | None = None) -> FileSource:
    """The images below a folder, as the settings' patterns choose them. Raises `SourceError`.

    `follow_links`: None is as the settings say.
    """
    gallery = settings.gallery
    follow = gallery.follow_links if follow_links is None else follow_links
    return FileSource(path, SUPPORTED_SUFFIXES, gallery.include, gallery.exclude, follow_links=follow)


def gallery_path(settings: Settings) -> str:
    """The configured folder. Raises `SettingsError` where none is."""
    if settings.gallery.path is None:
        raise SettingsError(
            "gallery.path is not set: give the folder of images in VECTORIZE_GALLERY__PATH, or the path in the run's "
            "config"
        )
    return settings.gallery.path


def gallery_default(settings: Settings) -> EmbeddingConfig:
    """Return what images are embedded with where their collection was never embedded again."""
    return EmbeddingConfig(settings.models.image)


def compare_gallery(settings: Settings) -> FolderComparison:
    """Return what a drain run of the gallery would find to do; read no file, ask no store and fetch no model.

    Raises `ModelNotFetchedError` where the model is not on this machine.
    """
    source = gallery_source(settings, gallery_path(settings))
    now = resolve_embedding_config(settings, settings.gallery.collection, "", gallery_default(settings))
    reader = ImageReader(settings, now, fetch=False)
    return compare_folder(settings, settings.gallery.collection, source, reader)


class ImageReader:
    """A `FileReader` of images. Making one loads no model and starts no process."""

    may_refuse = True

    def __init__(self, settings: Settings, now: EmbeddingConfig, *, fetch: bool = True):
        """Raises `UnknownModelError`, and `SettingsError` where the model takes no images.

        With `fetch` false a model that is not on this machine raises `ModelNotFetchedError`.
        """
        self.spec = describe_model(now.model, dimension=now.dimension, fetch=fetch, **describe_options(settings))
        if Modality.IMAGE not in self.spec.modalities:
            raise SettingsError(f"{now.model} takes no images; choose a CLIP model in models.image, such as ViT-B/32")
        self.model = self.spec.fingerprint
        reading = f"reader=image/{READER_VERSION}"
        self.fingerprint = f"{self.model} {reading}"
        self.equivalent_fingerprints = frozenset(
            f"{fingerprint} {reading}" for fingerprint in now.equivalent_fingerprints
        )
        self._settings = settings
        self._limits = settings.images.limits
        self.limits = f"bytes={self._limits.max_bytes} pixels={self._limits.max_pixels}"
        self._threads = ReadingThreads(READING_THREADS, "image")
        self._decoders: ImageDecoders | None = None

    def __enter__(self) -> Self:
        self._decoders = image_decoders(self._settings)
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Begin nothing more, and wait for nothing that is being read."""
        self._threads.close()
        decoders, self._decoders = self._decoders, None
        if decoders is not None:
            decoders.close()

    def read(self, files: Iterable[tuple[SourceFile, str | None]]) -> Iterator[tuple[SourceFile, Reading | ItemError]]:
        """Read as many files ahead as the limits above allow."""
        for file, reading in self._ahead(files):
            try:
                yield file, self._threads.result(reading)
            except CancelledError:
                return  # closed from outside
            except ItemError as error:
                yield file, error

    def _ahead(self, files: Iterable[tuple[SourceFile, str | None]]) -> Iterator[tuple[SourceFile, Future[Reading]]]:
        waiting: deque[tuple[SourceFile, Future[Reading]]] = deque()
        size = 0
        for file, known_hash in files:
            while waiting and (len(waiting) >= 2 * READING_THREADS or size + file.size > BYTES_IN_FLIGHT):
                size -= waiting[0][0].size
                yield waiting.popleft()
            waiting.append((file, self._threads.submit(partial(self._read, file, known_hash))))
            size += file.size
        yield from waiting

    def _read(self, file: SourceFile, known_hash: str | None) -> Reading:
        """Raises `ItemError`s."""
        decoders = self._decoders
        if decoders is None:
            raise CancelledError  # closed from outside
        data = read_content(file.source_id, self._limits.max_bytes + 1, file.within)
        digest = content_hash(data)
        if digest == known_hash:
            return Reading(digest, None)
        item = image_item(
            data, digest, decoders, source_id=file.source_id, uri=file.source_id, occurred_at=file.occurred_at
        )
        return Reading(digest, [item])
