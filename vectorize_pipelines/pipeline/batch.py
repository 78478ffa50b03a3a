"""The batch: records that are written together into one collection."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import pyarrow as pa

from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.state.held_locks import ExclusiveLock, unlocked
from vectorize_pipelines.stores.filters.expressions import Filter


def _nothing() -> None:
    """Called where there is nothing to do."""


@dataclass(slots=True)
class EmbeddingBatch:
    """Records for one collection, and what becomes stale with them.

    In this order: `announce(batch)`, `records`, deletion of what is `stale`, all while `exclusive()` is held; then
    `VectorStore.flush` of its collections, and `acknowledge()`. What is announced is durable when that returns.

    announce   tells the source which of its documents are about to change in the store; may still take rows out of
               the batch's `records` and put filters into `stale`. Called again where writing is tried again
    records    `records.record_schema`; may be empty
    stale      rows of earlier versions and of vanished sources, to be deleted once `records` are written
    totals     what the batch did, by day; its writer adds the time that writing took
    weights    rows written, by day
    exclusive  keeps other writers of the same sources away; a run that is the only one needs no lock for each batch
    physical   the collection whose model made the vectors, as the alias stood when the run looked; empty: `collection`
               as it stands now
    writer     who else may write the same rows, and does not while `exclusive()` is held: see `write_journal`
    reindex    have the store index the records again, whatever it has of them
    contents   by id, what rows without a text were made from, where it is at hand: for other generations' vectors
    cache      keeps the vectors where the next run finds them, should this one not get to write them
    """

    collection: str
    announce: Callable[["EmbeddingBatch"], None]
    records: pa.Table
    stale: Sequence[Filter]
    totals: Totals
    weights: Mapping[str, int]
    acknowledge: Callable[[], None]
    exclusive: Callable[[], AbstractContextManager[ExclusiveLock]] = unlocked
    physical: str = ""
    writer: str = "files"
    reindex: bool = False
    contents: Mapping[str, bytes] = field(default_factory=dict)
    cache: Callable[[], None] = _nothing

    def release(self) -> None:
        """Release what the batch was made from. Called once it has been written everywhere."""
        self.contents, self.cache = {}, _nothing

    def cache_once(self) -> None:
        """Call `cache`, the first time only."""
        cache, self.cache = self.cache, _nothing
        cache()
