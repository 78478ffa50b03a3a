"""The vector store as a resource, and the IO manager that writes embedding streams into it.

`VectorStoreIOManager`
- writes an `EmbeddingStream` batch by batch, acknowledging each once the store has it, in every generation of a
  collection that is being embedded again;
- records the figures of every partition that the run covers as that partition's metadata, those of the run as a whole
  with its last one;
- logs a materialization for every other day that a drain run touched;
- gives a downstream asset its partitions' records as a pandas DataFrame or a pyarrow Table.

    asset ──EmbeddingStream──▶ handle_output ──written──▶ store
    store ──fetch by partition──▶ load_input ──DataFrame | Table──▶ downstream asset
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa

from vectorize_pipelines.core.records import RECORD_FIELDS
from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.partitions import days_in, window_of
from vectorize_pipelines.pipeline.generations.writer import GenerationWriter
from vectorize_pipelines.pipeline.progress import ProgressLog
from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.pipeline.writing import BatchWriter, written
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.resources.figures import Preview, day_metadata
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.table_locks import TableLocks
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import Collection, VectorStore
from vectorize_pipelines.stores.filters.expressions import In

#: Where an asset's definition says which collection it is stored in.
COLLECTION_METADATA = "vectorize/collection"


#: Run id -> what its earlier attempts did. Dagster tries a step again in the same process.
_earlier_attempts: dict[str, Totals] = {}


@contextmanager
def _carried(run_id: str, stream: EmbeddingStream) -> Iterator[None]:
    """Add what earlier attempts of the run did to the stream's totals, and keep these for a later one."""
    try:
        yield
    except BaseException:
        _earlier_attempts.setdefault(run_id, Totals()).merge(stream.totals.work())
        raise
    stream.totals.merge(_earlier_attempts.pop(run_id, Totals()))


@dataclass(frozen=True, slots=True)
class StreamResult:
    """The outcome of writing a stream, to be shown. `collections`: those that it wrote to, by name."""

    collections: Sequence[Collection]
    preview: Preview

    def metadata(self, stream: EmbeddingStream, day: str) -> dict[str, Any]:
        """The metadata of one of its days."""
        return day_metadata(stream, day, self.collections, self.preview)


def write_stream(writer: BatchWriter, stream: EmbeddingStream) -> StreamResult:
    """Write all of a stream, log how far it is, and look where it went. Raises as `pipeline.writing.written`."""
    preview, progress, names = Preview(), ProgressLog(stream), set()
    for batch in written(writer, stream):
        preview.add(batch.records)
        if batch.records.num_rows or batch.stale:
            names.add(batch.collection)
        progress.show()
    progress.show(last=True)
    collections = []
    for name in sorted(names or {stream.collection}):
        with suppress(CollectionNotFoundError):  # a request's, before the first one that could be embedded
            collections.append(stream.outage.call(partial(writer.store.collection, name)))
    return StreamResult(collections, preview)


class VectorStoreResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The store that the settings name."""

    def open(self) -> VectorStore:
        """The store, opened anew; raises `SettingsError` or `StoreError`."""
        settings = load_settings()
        return open_store(settings.store, settings.home, TableLocks(settings))


class VectorStoreIOManager(dg.ConfigurableIOManager):
    """Writes streams into the store and reads partitions out of it; see the module's docstring."""

    vector_store: dg.ResourceDependency[VectorStoreResource]
    encoder: dg.ResourceDependency[EncoderResource]

    def handle_output(self, context: dg.OutputContext, obj: EmbeddingStream) -> None:
        """Write the stream. A store that fails, or an interrupt, leaves what was acknowledged and nothing else."""
        with translate_errors(), obj:
            store = self.vector_store.open()
            writer = GenerationWriter(load_settings(), store, self.encoder.lease)
            with closing(writer), _carried(context.run_id, obj):
                result = write_stream(writer, obj)
            self._report(context, obj, result)
            obj.reported()

    def _report(self, context: dg.OutputContext, obj: EmbeddingStream, result: "StreamResult") -> None:
        window = days_in(window_of(context.asset_partition_key_range))
        for day in window:
            metadata = result.metadata(obj, day)
            if day == window[-1]:
                metadata |= obj.figures()  # of the run as a whole, so they stand once
                if obj.losses():
                    metadata["lost_unread_offsets"] = "\n".join(obj.losses())
            context.step_context.add_asset_metadata(metadata, asset_key=context.asset_key, partition_key=day)
        for day in sorted(obj.touched.difference(window)):
            metadata = result.metadata(obj, day)
            context.log_event(dg.AssetMaterialization(context.asset_key, partition=day, metadata=metadata))

    def load_input(self, context: dg.InputContext) -> pd.DataFrame | pa.Table:
        """The records of the run's partitions: a Table where the input is annotated so, else a DataFrame.

        In the DataFrame `metadata` is a dict and `vector` a float32 array of shape (dimension,).
        """
        if context.upstream_output is None:
            raise dg.DagsterInvariantViolationError("the vector store gives the output of an embedding asset only")
        collection = context.upstream_output.definition_metadata[COLLECTION_METADATA]
        days = tuple(days_in(window_of(context.asset_partition_key_range)))
        with translate_errors():
            table = self.vector_store.open().fetch(collection, In("partition", days), (*RECORD_FIELDS, "vector"))
        if context.dagster_type.typing_type is pa.Table:
            return table
        frame: pd.DataFrame = table.to_pandas()
        frame["metadata"] = frame["metadata"].map(json.loads)
        return frame
