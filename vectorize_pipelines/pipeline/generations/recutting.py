"""Cuts documents again from their files, for a generation whose passages are cut otherwise than before."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeAlias

from vectorize_pipelines.core.items import Item, Modality
from vectorize_pipelines.core.records import record_id
from vectorize_pipelines.documents.recognition import SUPPORTED_SUFFIXES
from vectorize_pipelines.documents.types import MEMBER_SEPARATOR
from vectorize_pipelines.errors import ItemError, SourceError, UnreadableFileError
from vectorize_pipelines.pipeline.files.documents import DocumentReader
from vectorize_pipelines.pipeline.stored_rows import StoredRow
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.files import FileSource, SourceFile
from vectorize_pipelines.sources.rereading import is_listed_file
from vectorize_pipelines.state.generations import EmbeddingConfig, Generation

#: Rows of a source without vectors, and their items; or why it cannot be read.
Cut: TypeAlias = "list[tuple[StoredRow, Item]] | ItemError"


def can_be_cut(row: Mapping[str, Any], roots: Sequence[str] = ()) -> bool:
    """Return whether a row is a passage of a file; documents that came with requests keep the passages that they have.

    `roots` are those of `sources.rereading.listed_roots`.
    """
    return row["modality"] == Modality.DOCUMENT and is_listed_file(_outermost(row), roots)


def _outermost(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row of what lies inside of a file as one of that file."""
    is_inside = bool(row["uri"]) and row["uri"].startswith(f"{row['source_id']}{MEMBER_SEPARATOR}")
    return {**row, "uri": row["source_id"]} if is_inside else row


class Recutter:
    """Reads and cuts documents as one generation wants them. Used by one thread; closed by it, too."""

    def __init__(self, settings: Settings, generation: Generation):
        self._collection = generation.collection
        self._settings = settings.corpus
        limits = (generation.chunk_tokens, generation.overlap_tokens)
        self._reader = DocumentReader(settings, EmbeddingConfig(generation.model, generation.dimension, limits))
        self._resources = ExitStack()
        self._resources.enter_context(self._reader)

    def close(self) -> None:
        """End the parser processes."""
        self._resources.close()

    def cut(self, sources: Iterable[StoredRow]) -> dict[str, Cut]:
        """Return, by source id, the rows of these documents; each is named by one row that it has now.

        The rows keep that row's time and day: a file that has changed since is embedded under its new one by the run
        that finds it changed.
        """
        examples = {row["source_id"]: row for row in sources}
        found: dict[str, Cut] = {}
        files: list[SourceFile] = []
        for source_id in examples:
            try:
                listed = FileSource(source_id, SUPPORTED_SUFFIXES, (), ()).list().files
                files.append(replace(listed[source_id], within=self._within(source_id)))
            except (SourceError, KeyError) as error:
                found[source_id] = UnreadableFileError(f"cannot be cut anew: {error}")
        for file, reading in self._reader.read((file, None) for file in files):
            example = examples[file.source_id]
            if isinstance(reading, ItemError):
                found[file.source_id] = reading
            else:
                found[file.source_id] = [self._row(item, example) for item in reading.items or ()]
        return found

    def _within(self, source_id: str) -> str | None:
        """The folder that the file has to lie in, as when it was first read: the corpus, or, of another, its own."""
        if self._settings.follow_links or "://" in source_id:
            return None
        corpus = self._settings.path
        if corpus is None or "://" in corpus or not FileSource(corpus, SUPPORTED_SUFFIXES, (), ()).holds(source_id):
            return os.path.realpath(os.path.dirname(source_id))  # noqa: PTH120
        return os.path.realpath(corpus)

    def _row(self, item: Item, example: StoredRow) -> tuple[StoredRow, Item]:
        item = replace(item, occurred_at=example["occurred_at"])
        row = {
            **example,
            "id": record_id(self._collection, item.source_id, item.item_index),
            "item_index": item.item_index,
            "text": item.text,
            "uri": item.uri,
            "page": item.page,
            "start": item.start,
            "end": item.end,
            "content_hash": item.content_hash,
            "model": self._reader.model,
            "metadata": json.dumps(item.metadata, ensure_ascii=False, sort_keys=True),
        }
        return row, item
