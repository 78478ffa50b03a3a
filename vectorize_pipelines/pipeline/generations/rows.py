"""Stored rows -> the rows of the same items in another generation: other vectors, and where asked other passages.

Called for every batch that is written to several generations (`writer`) and for every row that is embedded again
(`stream`). A text is taken from its row, an image read again from its URI. Documents keep their
passages, unless the two generations are cut differently: then they are read again (`recutting`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vectorize_pipelines.core.items import Item, Modality, content_hash
from vectorize_pipelines.core.records import RECORD_FIELDS, record_schema
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.encoders.configured import describe_options
from vectorize_pipelines.errors import ItemError, ModelMismatchError
from vectorize_pipelines.pipeline.encoding import ItemEncoder, LeaseEncoder
from vectorize_pipelines.pipeline.reuse import configured_reuse
from vectorize_pipelines.pipeline.stored_rows import StoredRow
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.reading_threads import ReadingThreads
from vectorize_pipelines.sources.rereading import ContentReader
from vectorize_pipelines.state.generations import Generation

#: What a row says apart from its vector; all of it is in a row that is to be carried over.
FIELDS = RECORD_FIELDS
#: What must be equal for a row to be that of the same item, and up to date.
COMPARED = (
    "source_id", "item_index", "modality", "uri", "page", "start", "end", "content_hash", "occurred_at", "partition",
    "metadata",
)  # fmt: skip
SECONDS_PER_BATCH = 5.0
READING_THREADS = 8
#: What comes between the fingerprints of model and chunker in a row of a document.
CHUNKER = " chunker="


class ChangedContentError(ItemError):
    """A row's content is no longer what its URI leads to; its source's next run embeds what lies there."""


class NoContentError(ItemError):
    """A row has neither text nor a URI: what it was made from came with a request and was not kept."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that has no counterpart, and why."""

    row: StoredRow
    error: ItemError


class RowReembedder:
    """Makes rows of one generation. Used by one thread; closed by it, too."""

    def __init__(self, settings: Settings, generation: Generation, lease_encoder: LeaseEncoder):
        """Raises `UnknownModelError`, and `ModelMismatchError` where the model is not what it was."""
        spec = describe_model(generation.model, dimension=generation.dimension, **describe_options(settings))
        if spec.fingerprint != generation.fingerprint:
            raise ModelMismatchError(
                f"{generation.physical} holds vectors of {generation.fingerprint}, but {generation.model} is "
                f"{spec.fingerprint} by now; put the model back, or drop the collection: "
                f"`vectorize collections drop {generation.physical}`"
            )
        self.generation = generation
        self._contents = ContentReader(settings, settings.images.max_file_bytes)
        self._items = ItemEncoder(
            spec.dimension,
            lambda: lease_encoder(generation.model, generation.dimension),
            configured_reuse(settings, spec, force=False),
            most_rows=settings.pipeline.batch_items,
            seconds_per_batch=SECONDS_PER_BATCH,
        )

    @property
    def encoder(self) -> Encoder | None:
        """The encoder, once something was encoded."""
        return self._items.encoder

    @property
    def rows_together(self) -> int:
        """The number of rows to encode in one call."""
        return self._items.rows_together

    def model_of(self, row: Mapping[str, Any]) -> str:
        """The fingerprint that the counterpart of a row carries: this model's, and the row's own way of cutting."""
        _, cut, chunker = row["model"].rpartition(CHUNKER)
        return f"{self.generation.fingerprint}{CHUNKER}{chunker}" if cut else self.generation.fingerprint

    def load(
        self, rows: Sequence[StoredRow], contents: Mapping[str, bytes] | None = None
    ) -> tuple[list[tuple[StoredRow, Item]], list[Refused]]:
        """The items that rows were made from. Images are read, several at once, unless `contents` has them by id."""
        read: dict[str, bytes | ItemError] = {**contents} if contents is not None else {}
        images = [row for row in rows if row["text"] is None and row["id"] not in read]
        if images:
            with closing(ReadingThreads(READING_THREADS, "image")) as threads:
                begun = [(row["id"], threads.submit(partial(self._image, row))) for row in images]
                read |= {id_: threads.result(image) for id_, image in begun}
        loaded: list[tuple[StoredRow, Item]] = []
        refused: list[Refused] = []
        for row in rows:
            content = read.get(row["id"])
            if isinstance(content, ItemError):
                refused.append(Refused(row, content))
            else:
                loaded.append((row, _item(row, content)))
        return loaded, refused

    def encode(
        self, loaded: Sequence[tuple[StoredRow, Item]], totals: Totals
    ) -> tuple[pa.Table, list[Refused], Callable[[], None]]:
        """The records of these items, `record_schema`; those that the encoder refused; and what keeps the vectors.

        What was encoded is added to `totals`. A row keeps everything but its model, its vector and when that was made.
        """
        rows = [row for row, _ in loaded]
        items = [item for _, item in loaded]
        vectors, errors = self._items.encode(items, [row["partition"] for row in rows], totals)
        kept = [n for n in range(len(rows)) if n not in errors]
        made = datetime.now(UTC)
        whole = [{**rows[n], "model": self.model_of(rows[n]), "embedded_at": made} for n in kept]
        refused = [Refused(rows[n], error) for n, error in errors.items()]
        cache = partial(self._items.cache, [items[n] for n in kept], vectors[kept])
        return records_of(whole, vectors[kept]), refused, cache

    def close(self) -> None:
        """Give the encoder back."""
        self._items.close()

    def _image(self, row: StoredRow) -> bytes | ItemError:
        if not row["uri"]:
            return NoContentError("came inside a request and was not kept; send it again after the change of model")
        try:
            data = self._contents.read(row)
        except ItemError as error:
            return error
        if content_hash(data) != row["content_hash"]:
            return ChangedContentError("has changed since it was embedded; its next run embeds what lies there now")
        return data


def records_of(rows: Sequence[StoredRow], vectors: npt.NDArray[np.float32]) -> pa.Table:
    """Return records (`record_schema`) of rows without vectors, and their vectors, shape (n, dimension)."""
    schema = record_schema(vectors.shape[1])
    fields = pa.Table.from_pylist([{name: row[name] for name in FIELDS} for row in rows], pa.schema(list(schema)[:-1]))
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(vectors).reshape(-1)), type=schema.field("vector").type
    )
    return fields.append_column(schema.field("vector"), column)


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two rows, read as far as they are compared, are of the same item and equally up to date."""
    return all(one[name] == other[name] for name in COMPARED if name != "metadata") and json.loads(
        one["metadata"]
    ) == json.loads(other["metadata"])


def _item(row: StoredRow, content: bytes | None) -> Item:
    return Item(
        source_id=row["source_id"],
        item_index=row["item_index"],
        modality=Modality(row["modality"]),
        text=row["text"],
        uri=row["uri"],
        content_hash=row["content_hash"],
        occurred_at=row["occurred_at"],
        page=row["page"],
        start=row["start"],
        end=row["end"],
        content=content,
        metadata=json.loads(row["metadata"]),
    )
