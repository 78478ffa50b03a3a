"""Cuts documents anew from their files, for a generation whose passages are cut otherwise than before."""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeAlias

from vectorize_pipelines.documents.parsing import SUPPORTED_SUFFIXES
from vectorize_pipelines.errors import ItemError, SourceError, UnreadableFileError
from vectorize_pipelines.generations import Generation, InForce
from vectorize_pipelines.items import Item, Modality
from vectorize_pipelines.pipeline.documents import DocumentReader
from vectorize_pipelines.records import record_id
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.files import FileSource, SourceFile

Row: TypeAlias = dict[str, Any]
#: Rows of a source without vectors, and their items; or why it cannot be read.
Cut: TypeAlias = "list[tuple[Row, Item]] | ItemError"


def can_be_cut(row: Mapping[str, Any]) -> bool:
    """Whether a row is a passage of a file; documents that came with requests keep the passages that they have."""
    return bool(row["modality"] == Modality.DOCUMENT and row["uri"] and row["uri"] == row["source_id"])


class Recutter:
    """Reads and cuts documents as one generation wants them. Used by one thread; closed by it, too."""

    def __init__(self, settings: Settings, generation: Generation):
        self._collection = generation.collection
        limits = (generation.chunk_tokens, generation.overlap_tokens)
        self._reader = DocumentReader(settings, InForce(generation.model, generation.dimension, limits))
        self._resources = ExitStack()
        self._resources.enter_context(self._reader)

    def close(self) -> None:
        """Ends the parser processes."""
        self._resources.close()

    def cut(self, sources: Iterable[Row]) -> dict[str, Cut]:
        """By source id, the rows of these documents; each is given by one row that it has now.

        The rows keep that row's time and day: a file that has changed since is embedded under its new one by the run
        that finds it changed.
        """
        examples = {row["source_id"]: row for row in sources}
        found: dict[str, Cut] = {}
        files: list[SourceFile] = []
        for source_id in examples:
            try:
                listed = FileSource(source_id, SUPPORTED_SUFFIXES, (), ()).list().files
                files.append(listed[source_id])
            except (SourceError, KeyError) as error:
                found[source_id] = UnreadableFileError(f"cannot be cut anew: {error}")
        for file, reading in self._reader.read((file, None) for file in files):
            example = examples[file.source_id]
            if isinstance(reading, ItemError):
                found[file.source_id] = reading
            else:
                found[file.source_id] = [self._row(item, example) for item in reading.items or ()]
        return found

    def _row(self, item: Item, example: Row) -> tuple[Row, Item]:
        item = replace(item, occurred_at=example["occurred_at"])
        row = {
            **example,
            "id": record_id(self._collection, item.source_id, item.item_index),
            "item_index": item.item_index,
            "text": item.text,
            "page": item.page,
            "start": item.start,
            "end": item.end,
            "content_hash": item.content_hash,
            "model": self._reader.model,
            "metadata": json.dumps(item.metadata, ensure_ascii=False, sort_keys=True),
        }
        return row, item
