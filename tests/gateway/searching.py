"""Collections to search over HTTP: texts under the real model, pictures under a small one, and a server before them."""

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.encoders.tiny_clips import build_clip
from tests.gateway.running import as_caller, running
from tests.images.pictures import encoded, photo
from vectorize_pipelines.core.items import content_hash
from vectorize_pipelines.encoders.configured import lease_configured
from vectorize_pipelines.gateway.app import create_routes
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.door.auth import Caller, Scope
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, Settings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.conformance.records import row, table

READER = Caller.of("reader", Scope.READ)
SECONDS = 60.0
TEXTS = "articles"
PICTURES = "gallery"
FINGERPRINT = "all-MiniLM@0123456789ab dim=384"
CHUNKER = "tokens/3 max=256 overlap=32 parser=4"
#: Name -> text and metadata.
DOCUMENTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "hens.md": ("The keeper feeds the hens at six.", {"language": "en", "year": 1970, "title": "Hens, and others"}),
    "lamp.md": ("The lamp of the lighthouse burns paraffin.", {"language": "en", "year": 1987}),
    "灯塔.md": ("灯塔建于1897年。", {"language": "zh", "year": "1987", "half": "\ud800"}),
}


@contextmanager
def served(settings: Settings, caller: Caller = READER) -> Iterator[httpx2.Client]:
    """A client of a server; Dagster is not asked for anything here."""
    app = create_routes(settings, DagsterAddress("http://127.0.0.1:1"))
    with (
        running(as_caller(app, caller)) as url,
        httpx2.Client(base_url=url, timeout=SECONDS, trust_env=False) as client,
    ):
        yield client


def store_texts(settings: Settings) -> None:
    """`DOCUMENTS`, one row each."""
    with lease_configured(settings, DEFAULT_TEXT_MODEL) as encoder:
        vectors = encoder.encode([text for text, _ in DOCUMENTS.values()])
        spec = encoder.spec
    rows = [
        row(
            name, text=text, metadata=metadata, page=number + 1, vector=vector, model=f"{FINGERPRINT} chunker={CHUNKER}"
        )
        for number, ((name, (text, metadata)), vector) in enumerate(zip(DOCUMENTS.items(), vectors, strict=True))
    ]
    store = open_store(settings.store, settings.home)
    store.ensure_collection(TEXTS, spec)
    store.upsert(TEXTS, table(rows, spec.dimension))
    store.flush((TEXTS,))
    store.close()


def store_pictures(settings: Settings, folder: Path) -> list[Path]:
    """Three photographs in a folder, and a row of each, as an ingest of the folder stores them."""
    files = [folder / f"{number}.jpg" for number in range(3)]
    for number, file in enumerate(files):
        file.write_bytes(encoded(photo(number, 640, 480), "JPEG"))
    store_images(
        settings, folder, [{"source_id": str(file), "uri": str(file), "content": file.read_bytes()} for file in files]
    )
    return files


def store_images(settings: Settings, folder: Path, images: list[dict[str, Any]]) -> None:
    """A row of each image in the collection `PICTURES`; its model lies beside the folder."""
    clip = folder.parent / "clip"
    if not clip.exists():
        build_clip(clip)
    with lease_configured(settings, str(clip)) as encoder:
        vectors = encoder.encode([image["content"] for image in images])
        spec = encoder.spec
    rows = [
        row(
            image["source_id"],
            text=None,
            modality="image",
            uri=image["uri"],
            content_hash=content_hash(image["content"]),
            metadata={"name": Path(image["uri"]).name},
            vector=vector,
        )
        for image, vector in zip(images, vectors, strict=True)
    ]
    store = open_store(settings.store, settings.home)
    store.ensure_collection(PICTURES, spec)
    store.upsert(PICTURES, table(rows, spec.dimension))
    store.flush((PICTURES,))
    store.close()


def data_uri(content: bytes) -> str:
    """The content as a `data:` URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
