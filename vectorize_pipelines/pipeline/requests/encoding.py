"""Batches of messages -> batches of records with their vectors.

Made and called by `stream`, in its encoding thread but for what a batch calls itself.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from vectorize_pipelines.core.items import Item, Modality
from vectorize_pipelines.core.records import make_records, record_id
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.encoders.base import EngineChoice, TokenCount
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.pipeline.batch import EmbeddingBatch
from vectorize_pipelines.pipeline.encoding import FIRST_BATCH, ItemEncoder
from vectorize_pipelines.pipeline.requests.advance import Advance
from vectorize_pipelines.pipeline.requests.batches import MessageBatch, is_superseded, newest
from vectorize_pipelines.pipeline.requests.context import RunContext
from vectorize_pipelines.pipeline.requests.named_models import UnusableModelError, failing_the_request
from vectorize_pipelines.pipeline.requests.pending import PendingRequest
from vectorize_pipelines.pipeline.requests.report import Report
from vectorize_pipelines.pipeline.requests.targets import REFUSED_SECONDS, Target, Targets
from vectorize_pipelines.pipeline.requests.text_tokens import TextTokens
from vectorize_pipelines.pipeline.requests.writes import NO_RECORDS, Deletion, KnownSources, RequestWrite
from vectorize_pipelines.pipeline.reuse import configured_reuse
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.state.versions import Known
from vectorize_pipelines.stores.contents import vectors_of
from vectorize_pipelines.stores.filters.expressions import In

#: A batch takes at most about this long to encode: so long may a message of the priority lane wait for those before it.
SECONDS_PER_BATCH = 3.0


class RequestEncoding:
    """The encoding of what the requests of message batches hold, by the models that they name."""

    def __init__(self, context: RunContext, targets: Targets, report: Report):
        self._context = context
        self._store = context.store
        self._versions = context.versions
        self._sources = KnownSources(context.store, context.versions)
        self._targets = targets
        self._report = report
        self._tokens = TextTokens(context.settings)
        self._encoders: dict[tuple[str, int | None], ItemEncoder] = {}
        self._failed: dict[tuple[str, int | None], tuple[UnusableModelError, float]] = {}

    def close(self) -> None:
        """Give the encoders back; a second call does nothing."""
        for each in self._encoders.values():
            each.close()

    @property
    def choice(self) -> EngineChoice | None:
        """The engine of the first model; None where nothing has been encoded."""
        return next((each.encoder.choice for each in self._encoders.values() if each.encoder is not None), None)

    @property
    def rows_together(self) -> int:
        """The number of rows that make a batch."""
        return max((each.rows_together for each in self._encoders.values()), default=FIRST_BATCH)

    @property
    def seconds_per_row(self) -> float:
        """The seconds that the slowest encoder takes for a row; infinite where that is not known."""
        return max((each.seconds_per_row for each in self._encoders.values()), default=inf)

    def batches(self, messages: MessageBatch) -> list[EmbeddingBatch]:
        """Deletions, then one batch for each collection; at least one, which may have nothing to write."""
        batches = [*self._deletions(messages), *self._groups(messages)]
        return batches or [self._batch(self._targets.default_collection, _nothing_to_announce)]

    def open(self, target: Target) -> None:
        """Load the settings' model where the target has that. One that a message named is loaded for that message."""
        if target.own:
            self._encoder(target).open()

    def rehearse(self, messages: MessageBatch) -> None:
        """Encode what the messages hold and leave it at that; where nobody dies of it, `batches` has the vectors."""
        for collection, requests, known in self._by_collection(messages):
            self._vectors(collection, _target_of(requests), requests, known, messages.encoding)

    def _deletions(self, messages: MessageBatch) -> Iterator[EmbeddingBatch]:
        if messages.tombstones:
            deletion = Deletion(self._store, self._versions, messages.tombstones)
            for collection in self._context.outage.call(partial(deletion.noted, self._targets.default_collection)):
                yield self._batch(collection, deletion.announce)

    def _by_collection(self, messages: MessageBatch) -> Iterator[tuple[str, list[PendingRequest], Mapping[str, Known]]]:
        """Each collection, those of its requests that still count, and what is known of them; none without any."""
        groups: dict[str, list[PendingRequest]] = {}
        for pending in messages.requests:
            if pending.state is RequestState.PROCESSING and pending.target is not None:
                groups.setdefault(pending.target.collection, []).append(pending)
        for collection, requests in groups.items():
            known = self._sources.known(collection, [pending.request.task_id for pending in requests])
            live = [pending for pending in requests if not is_superseded(pending, known)]
            if live:
                yield collection, live, known

    def _groups(self, messages: MessageBatch) -> Iterator[EmbeddingBatch]:
        for collection, requests, known in self._by_collection(messages):
            # The encoder refuses no text: the older ones of a task need not be encoded.
            counting = newest(requests) if self._context.modality is Modality.TEXT else requests
            yield self._group(collection, counting, known)

    def _group(self, collection: str, requests: Sequence[PendingRequest], known: Mapping[str, Known]) -> EmbeddingBatch:
        totals, target = Totals(), _target_of(requests)
        vectors, made = self._vectors(collection, target, requests, known, totals)
        live = newest([pending for pending in requests if pending.error is None])
        counted = set(map(id, live))
        kept = [id(pending) in counted for pending in requests for _ in pending.items]
        items = [item for pending in live for item in pending.items]
        vectors = vectors[kept]
        ids = [record_id(collection, item.source_id, item.item_index) for item in items]
        records = make_records(
            ids,
            items,
            [pending.day for pending in live for _ in pending.items],
            vectors,
            [time for time, keep in zip(made, kept, strict=True) if keep],
            [model for pending in live for model in pending.models],
            run_id=self._context.run_id,
        )
        write = RequestWrite(self._sources, live, totals, self._report.cancelled)
        batch = self._batch(collection, partial(self._announce, write), records)
        batch.physical = target.physical
        batch.contents = {
            id_: item.content for id_, item in zip(ids, items, strict=True) if isinstance(item.content, bytes)
        }
        batch.cache = partial(self._encoder(target).cache, items, vectors)
        return batch

    def _announce(self, write: RequestWrite, batch: EmbeddingBatch) -> None:
        """Runs in the writer's thread: what was cancelled while it was encoded is not written any more."""
        self._report.refresh()
        write.announce(batch)

    def _vectors(
        self,
        collection: str,
        target: Target,
        requests: Sequence[PendingRequest],
        known: Mapping[str, Known],
        totals: Totals,
    ) -> tuple[npt.NDArray[np.float32], list[datetime]]:
        """A vector for every item, in order, and when each was made. What is refused fails its request.

        The vectors have shape (items, dimension).
        """
        owners = [pending for pending in requests for _ in pending.items]
        items = [item for pending in requests for item in pending.items]
        models = [model for pending in requests for model in pending.models]
        vectors = np.empty((len(items), target.spec.dimension), dtype=np.float32)
        made = [datetime.now(UTC)] * len(items)
        look_up = partial(self._stored, collection, target.physical, requests, known)
        stored = {} if self._context.force else self._context.outage.call(look_up)
        left: list[int] = []
        for n, item in enumerate(items):
            found = stored.get((item.source_id, item.content_hash, models[n]))
            if found is None:
                left.append(n)
            else:
                vectors[n], made[n] = found
        left_of = [owners[n] for n in left]
        advance = Advance.of(self._report, requests, left_of, self._encoder(target).seconds_per_row)
        days = [pending.day for pending in left_of]
        counts: dict[int, TokenCount] = {}
        try:
            vectors[left], refused = self._encode(target, [items[n] for n in left], days, totals, advance, counts)
        except UnusableModelError as error:  # a message named it, and those behind that one would never be reached
            refused = {n: UnusableModelError(*error.args) for n in range(len(left))}
        for place, reason in refused.items():
            left_of[place].fail(reason)
        if self._context.modality is Modality.TEXT:
            self._tokens.note(target, requests, {left[place]: count for place, count in counts.items()})
        return vectors, made

    def _encode(
        self,
        target: Target,
        items: Sequence[Item],
        days: Sequence[str],
        totals: Totals,
        advance: Advance | None,
        counts: dict[int, TokenCount],
    ) -> tuple[npt.NDArray[np.float32], dict[int, ItemError]]:
        """As `ItemEncoder.encode`. A model that could not be loaded is not tried again for a while."""
        encoder, key = self._encoder(target), (target.model, target.dimension)
        failed, since = self._failed.get(key, (None, 0.0))
        if failed is not None and time.monotonic() - since < REFUSED_SECONDS:
            raise UnusableModelError(*failed.args)

        def encode() -> tuple[npt.NDArray[np.float32], dict[int, ItemError]]:
            if advance is not None:
                advance.begin()
            with failing_the_request(target.model, own=target.own):
                return encoder.encode(
                    items,
                    days,
                    totals,
                    None if advance is None else advance.encoded,
                    counts if self._context.modality is Modality.TEXT else None,
                )

        try:
            return self._targets.retry(encode)
        except UnusableModelError as error:
            if encoder.encoder is None:
                self._failed[key] = UnusableModelError(*error.args), time.monotonic()
            raise

    def _stored(
        self, collection: str, physical: str, requests: Sequence[PendingRequest], known: Mapping[str, Known]
    ) -> Mapping[tuple[str, str, str], tuple[Any, datetime]]:
        """(task id, content, model) -> vector and when it was made, of what the store has of these requests."""
        names = [pending.request.task_id for pending in requests]
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
                lambda: self._context.lease_encoder(*key),
                configured_reuse(self._context.settings, target.spec, force=self._context.force),
                # The setting counts messages, of which each may have many rows.
                most_rows=max(FIRST_BATCH, self._context.settings.kafka.drain.batch_messages),
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
            writer="requests",
            reindex=self._context.force,
        )


def _target_of(requests: Sequence[PendingRequest]) -> Target:
    """The target of requests for one collection."""
    target = requests[0].target
    assert target is not None, "requests without a target are in no group"
    return target


def _nothing_to_announce(batch: EmbeddingBatch) -> None:
    """Do nothing: the batch only acknowledges."""
