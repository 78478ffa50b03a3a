"""Units of messages -> batches of records with their vectors.

Made and called by `pipeline.request_stream`, in its encoding thread but for what a batch calls itself.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vectorize_pipelines.encoders.protocol import Encoder, EngineChoice
from vectorize_pipelines.errors import ModelTooLargeError, SettingsError, UnknownModelError
from vectorize_pipelines.items import Modality
from vectorize_pipelines.pipeline.encoding import FIRST_BATCH, ItemEncoder
from vectorize_pipelines.pipeline.outage import Outage
from vectorize_pipelines.pipeline.request_report import Report
from vectorize_pipelines.pipeline.request_units import Unit, is_superseded, newest
from vectorize_pipelines.pipeline.request_writes import NO_RECORDS, Deletion, KnownSources, RequestWrite
from vectorize_pipelines.pipeline.requests import Target, Targets, UnusableModelError, Work
from vectorize_pipelines.pipeline.reuse import configured_reuse
from vectorize_pipelines.pipeline.stream import EmbeddingBatch
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.records import make_records, record_id
from vectorize_pipelines.request_state import RequestState
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.stores.contents import vectors_of
from vectorize_pipelines.stores.filters import In
from vectorize_pipelines.stores.protocol import VectorStore
from vectorize_pipelines.versions import Known, SourceVersions

#: A batch takes at most about this long to encode: so long may a message of the priority lane wait for those before it.
SECONDS_PER_BATCH = 3.0

#: Gives the encoder of a model; the second argument is the vectors' dimension, None for the model's own.
LeaseEncoder: TypeAlias = Callable[[str, int | None], AbstractContextManager[Encoder]]


class RequestEncoding:
    """Encodes what the requests of units hold, with the encoders of the models that they name.

    force  encodes also what the store has already
    """

    def __init__(
        self,
        settings: Settings,
        modality: Modality,
        run_id: str,
        *,
        store: VectorStore,
        versions: SourceVersions,
        targets: Targets,
        report: Report,
        lease_encoder: LeaseEncoder,
        outage: Outage,
        force: bool,
    ):
        self._settings = settings
        self._modality = modality
        self._run_id = run_id
        self._store = store
        self._versions = versions
        self._sources = KnownSources(store, versions)
        self._collection = targets.default_collection
        self._default_model = targets.default_model
        self._report = report
        self._lease_encoder = lease_encoder
        self._outage = outage
        self._force = force
        self._encoders: dict[tuple[str, int | None], ItemEncoder] = {}

    def close(self) -> None:
        """Gives the encoders back; a second call does nothing."""
        for each in self._encoders.values():
            each.close()

    @property
    def choice(self) -> EngineChoice | None:
        """How the first model encodes; None where nothing has been encoded."""
        return next((each.encoder.choice for each in self._encoders.values() if each.encoder is not None), None)

    @property
    def rows_together(self) -> int:
        """As many rows as make a batch."""
        return max((each.rows_together for each in self._encoders.values()), default=FIRST_BATCH)

    @property
    def seconds_per_row(self) -> float:
        """What the slowest encoder takes; infinite where it is not known."""
        return max((each.seconds_per_row for each in self._encoders.values()), default=inf)

    def batches(self, unit: Unit) -> list[EmbeddingBatch]:
        """Deletions, then one batch for each collection; at least one, which may have nothing to write."""
        batches = [*self._deletions(unit), *self._groups(unit)]
        return batches or [self._batch(self._collection, _nothing_to_announce)]

    def _deletions(self, unit: Unit) -> Iterator[EmbeddingBatch]:
        if unit.tombstones:
            deletion = Deletion(self._store, self._versions, unit.tombstones)
            for collection in self._outage.wait_out(partial(deletion.noted, self._collection)):
                yield self._batch(collection, deletion.announce)

    def _groups(self, unit: Unit) -> Iterator[EmbeddingBatch]:
        groups: dict[str, list[Work]] = {}
        for work in unit.works:
            if work.state is RequestState.PROCESSING and work.target is not None:
                groups.setdefault(work.target.collection, []).append(work)
        for collection, works in groups.items():
            known = self._sources.known(collection, [work.request.task_id for work in works])
            live = [work for work in works if not is_superseded(work, known)]
            if self._modality is Modality.TEXT:  # of which the encoder refuses none: the others need not be encoded
                live = newest(live)
            if live:
                yield self._group(collection, live, known)

    def _group(self, collection: str, works: Sequence[Work], known: Mapping[str, Known]) -> EmbeddingBatch:
        totals = Totals()
        target = works[0].target
        assert target is not None, "works without a target are in no group"
        vectors, made = self._vectors(collection, target, works, known, totals)
        live = newest([work for work in works if work.error is None])
        counted = set(map(id, live))
        kept = [id(work) in counted for work in works for _ in work.items]
        items = [item for work in live for item in work.items]
        vectors = vectors[kept]
        ids = [record_id(collection, item.source_id, item.item_index) for item in items]
        records = make_records(
            ids,
            items,
            [work.day for work in live for _ in work.items],
            vectors,
            [time for time, keep in zip(made, kept, strict=True) if keep],
            [model for work in live for model in work.models],
            run_id=self._run_id,
        )
        write = RequestWrite(self._store, self._versions, self._sources, live, totals, self._report.cancelled)
        batch = self._batch(collection, partial(self._announce, write), records)
        batch.physical = target.physical
        batch.contents = {
            id_: item.content for id_, item in zip(ids, items, strict=True) if isinstance(item.content, bytes)
        }
        batch.keep = partial(self._encoder(target).keep, items, vectors)
        return batch

    def _announce(self, write: RequestWrite, batch: EmbeddingBatch) -> None:
        """Runs in the writer's thread: what was cancelled while it was encoded is not written any more."""
        self._report.refresh()
        write.announce(batch)

    def _vectors(
        self, collection: str, target: Target, works: Sequence[Work], known: Mapping[str, Known], totals: Totals
    ) -> tuple[npt.NDArray[np.float32], list[datetime]]:
        """A vector for every item of the works, in order, and when each was made; what is refused fails its work."""
        owners = [work for work in works for _ in work.items]
        items = [item for work in works for item in work.items]
        models = [model for work in works for model in work.models]
        vectors = np.empty((len(items), target.spec.dimension), dtype=np.float32)
        made = [datetime.now(UTC)] * len(items)
        look_up = partial(self._stored, collection, target.physical, works, known)
        stored = {} if self._force else self._outage.wait_out(look_up)
        left: list[int] = []
        for n, item in enumerate(items):
            found = stored.get((item.source_id, item.content_hash, models[n]))
            if found is None:
                left.append(n)
            else:
                vectors[n], made[n] = found
        days = [owners[n].day for n in left]
        try:
            vectors[left], refused = self._encoder(target).encode([items[n] for n in left], days, totals)
        except (UnknownModelError, ModelTooLargeError, SettingsError) as unusable:
            if target.model == self._default_model:
                raise
            # A message named it, and no message behind that one would ever be reached.
            refused = dict.fromkeys(range(len(left)), UnusableModelError(f"model_name: {unusable}"))
        for place, error in refused.items():
            owners[left[place]].fail(error)
        return vectors, made

    def _stored(
        self, collection: str, physical: str, works: Sequence[Work], known: Mapping[str, Known]
    ) -> Mapping[tuple[str, str, str], tuple[Any, datetime]]:
        """(task id, content, model) -> vector and when it was made, of what the store has of these requests."""
        names = [work.request.task_id for work in works]
        asked = self._sources.may_have_rows(collection, physical, names, known)
        if not asked:
            return {}
        columns = ("source_id", "content_hash", "model", "embedded_at", "vector")
        table = self._store.fetch(physical, In("source_id", tuple(asked)), columns)
        vectors = vectors_of(table)
        rows = table.select(columns[:4]).to_pylist()
        return {
            (row["source_id"], row["content_hash"], row["model"]): (vectors[n], row["embedded_at"])
            for n, row in enumerate(rows)
        }

    def _encoder(self, target: Target) -> ItemEncoder:
        key = (target.model, target.dimension)
        if key not in self._encoders:
            self._encoders[key] = ItemEncoder(
                target.spec.dimension,
                lambda: self._lease_encoder(*key),
                configured_reuse(self._settings, target.spec, force=self._force),
                most_rows=self._settings.kafka.drain.batch_messages,
                seconds_per_batch=SECONDS_PER_BATCH,
            )
        return self._encoders[key]

    def _batch(
        self,
        collection: str,
        announce: Callable[[EmbeddingBatch], None],
        records: Any = NO_RECORDS,
    ) -> EmbeddingBatch:
        return EmbeddingBatch(
            collection=collection,
            announce=announce,
            records=records,
            stale=[],
            totals=Totals(),
            weights=Counter(records["partition"].to_pylist()),
            acknowledge=lambda: None,
            exclusive=lambda: self._versions.exclusive(collection),
        )


def _nothing_to_announce(batch: EmbeddingBatch) -> None:
    """Of a batch that only acknowledges."""
