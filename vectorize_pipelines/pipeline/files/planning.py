"""Decides, for each change of a source, what has to be encoded, what only rewritten, and what deleted.

Called by `files.stream` in its reading thread. The rule: an item whose content stands in the store already,
in a row of the same source and the same model, takes that row's vector; a row that is right in every field is not
touched at all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vectorize_pipelines.core.items import Item, Modality
from vectorize_pipelines.core.records import record_id
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.pipeline.files.changes import Change, Changed, Failed, Receipt, Touched, Vanished
from vectorize_pipelines.pipeline.files.context import FolderRun
from vectorize_pipelines.pipeline.stored_rows import FIELDS_BUT_TEXT, StoredRow, has_fields_of
from vectorize_pipelines.pipeline.totals import Failure, RunNotices, Totals
from vectorize_pipelines.stores.contents import rows_of, vectors_of
from vectorize_pipelines.stores.filters.expressions import Filter, In

#: Changes that bring no items, and are looked up together.
CHANGES_TOGETHER = 64
#: Bytes of content that a group of changes may carry: of it, a few plans wait between the stages.
BYTES_TOGETHER = 64 * 2**20


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row to write. `donor` is the id of the row whose vector it takes, None where it has to be encoded."""

    id: str
    item: Item
    day: str
    donor: str | None


@dataclass(slots=True)
class Plan:
    """One batch's worth of work: sources to announce, rows to write, then rows to delete, then receipts to give back.

    sources    those of which something is written or deleted
    refusable  by source id, the changes whose one item the encoder may refuse
    """

    sources: list[str] = field(default_factory=list)
    rows: list[PlannedRow] = field(default_factory=list)
    stale_ids: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    failures: list[Failure] = field(default_factory=list)
    notices: RunNotices = field(default_factory=RunNotices)
    refusable: dict[str, Changed] = field(default_factory=dict)

    def release(self) -> None:
        """Let go of the content, once records are made of it: what remains may have to wait for long."""
        self.rows, self.refusable = [], {}


class Planner:
    """Plans the changes of one run.

    Ids are made by the collection's alias; rows are looked up in the run's physical collection, which stays this
    model's when the alias is switched meanwhile.
    """

    def __init__(self, run: FolderRun):
        """Raises `StoreError`."""
        self._run = run
        # Who holds the source's lock is the only writer of its rows, so an empty collection stays so until we write.
        self._nothing_there = run.store.count(run.physical) == 0

    def plans(self, changes: Iterable[Change], rows_together: Callable[[], int]) -> Iterator[Plan]:
        """Yield plans of about `rows_together()` rows, asked by group; a receipt comes with a source's last row.

        Only a document that would make a plan more than twice as large is divided: a few rows left over are slow to
        encode and as slow to write as many.
        """
        group: list[Change] = []
        items = others = size = 0
        for change in changes:
            group.append(change)
            if isinstance(change, Changed):
                items += len(change.items)
                size += sum(len(item.content) for item in change.items if isinstance(item.content, bytes))
            else:
                others += 1
            if items >= rows_together() or others >= CHANGES_TOGETHER or size >= BYTES_TOGETHER:
                yield from self._plan_group(group, rows_together())
                group, items, others, size = [], 0, 0, 0
        if group:
            yield from self._plan_group(group, rows_together())

    def _plan_group(self, group: Sequence[Change], rows_together: int) -> Iterator[Plan]:
        existing = self._existing_rows(group)
        plan = Plan()
        for change in group:
            if isinstance(change, Failed | Vanished):
                self._note(plan, change)
                continue
            rows = existing.get(change.source_id, {})
            items = _items(change, rows)
            plan.sources.append(change.source_id)
            for row in self._rows_to_write(items, rows, force=self._run.encodes_again(change.source_id)):
                if len(plan.rows) >= 2 * rows_together:
                    yield plan
                    plan = Plan()
                plan.rows.append(row)
            self._finish(plan, change, items, rows)
        self._count_deleted(plan)
        yield plan

    def _rows_to_write(
        self, items: Sequence[Item], existing: Mapping[str, StoredRow], *, force: bool
    ) -> Iterator[PlannedRow]:
        usable = {} if force else {id_: row for id_, row in existing.items() if row["model"] == self._run.model}
        donors = {row["content_hash"]: id_ for id_, row in usable.items()}
        for item in items:
            id_ = self._id(item)
            day = self._run.days.of(item.occurred_at)
            old = usable.get(id_)
            if old is None or old["content_hash"] != item.content_hash:
                yield PlannedRow(id_, item, day, donors.get(item.content_hash))
            elif not has_fields_of(old, item, day):
                yield PlannedRow(id_, item, day, id_)

    def _finish(
        self, plan: Plan, change: Changed | Touched, items: Sequence[Item], existing: Mapping[str, StoredRow]
    ) -> None:
        """Add what comes with a source's last row: stale rows, the receipt, the counts."""
        plan.receipts.append(change.receipt)
        if isinstance(change, Changed) and change.refused is not None:
            plan.refusable[change.source_id] = change
        wanted = {self._id(item) for item in items}
        for id_, row in existing.items():
            day = plan.totals.of(row["partition"])  # a row that moves to another day changes this one too
            if id_ not in wanted:
                plan.stale_ids.append(id_)
                day.deleted += 1
        name = self._run.days.of(change.occurred_at)
        day = plan.totals.of(name)
        day.documents += 1
        day.chunks += len(items)
        day.note(change.notices)
        plan.notices.add(change.source_id, name, change.notices)

    def refuse(self, plan: Plan, source_id: str, error: ItemError) -> None:
        """Take a source out of a plan: the encoder refused its item. Raises `error` where that is not foreseen."""
        change = plan.refusable.get(source_id)
        if change is None or change.refused is None:
            raise error
        plan.receipts[plan.receipts.index(change.receipt)] = change.refused(error)
        plan.rows = [row for row in plan.rows if row.item.source_id != source_id]
        day = plan.totals.of(self._run.days.of(change.occurred_at))
        day.chunks -= len(change.items)
        day.note(change.notices, -1)
        plan.notices.remove(source_id)
        self._count_failure(plan, change, error)

    def _id(self, item: Item) -> str:
        return record_id(self._run.collection, item.source_id, item.item_index)

    def _note(self, plan: Plan, change: Failed | Vanished) -> None:
        """Add a source of which nothing is written."""
        plan.receipts.append(change.receipt)
        if isinstance(change, Vanished):
            plan.sources.append(change.source_id)
            plan.vanished.append(change.source_id)
            return
        plan.totals.of(self._run.days.of(change.occurred_at)).documents += 1
        self._count_failure(plan, change, change.error)

    def _count_failure(self, plan: Plan, change: Changed | Failed, error: ItemError) -> None:
        day = self._run.days.of(change.occurred_at)
        failure = Failure(change.source_id, day, type(error).__name__, str(error))
        plan.failures.append(failure)
        plan.totals.of(day).failed += 1
        plan.totals.of(day).errors[failure.error_class] += 1

    def _count_deleted(self, plan: Plan) -> None:
        """Count the rows of vanished sources, which are not looked at: there may be any number of them."""
        if plan.vanished and not self._nothing_there:
            where = In("source_id", tuple(plan.vanished))
            for day, rows in self._counted_by_day(where).items():
                plan.totals.of(day).deleted += rows

    def _counted_by_day(self, where: Filter) -> dict[str, int]:
        return self._run.outage.call(lambda: self._run.store.count_by(self._run.physical, "partition", where))

    def _fetched(self, where: Filter, columns: Sequence[str]) -> pa.Table:
        return self._run.outage.call(lambda: self._run.store.fetch(self._run.physical, where, columns))

    def _existing_rows(self, group: Sequence[Change]) -> dict[str, dict[str, StoredRow]]:
        """Source id -> row id -> row, without vectors; the text only where the source itself is not read."""
        found: dict[str, dict[str, StoredRow]] = {}
        if self._nothing_there:
            return found
        touched = tuple(change.source_id for change in group if isinstance(change, Touched))
        others = tuple(change.source_id for change in group if isinstance(change, Changed))
        for sources, columns in ((touched, (*FIELDS_BUT_TEXT, "text")), (others, FIELDS_BUT_TEXT)):
            if sources:
                for row in rows_of(self._fetched(In("source_id", sources), columns)):
                    found.setdefault(row["source_id"], {})[row["id"]] = row
        return found

    def donated_vectors(self, rows: Sequence[PlannedRow]) -> dict[str, tuple[npt.NDArray[np.float32], datetime]]:
        """Donor id -> (vector, when it was made), for the donors that still hold the content that is wanted.

        A donor may have been overwritten since the plan was made, by an earlier batch of the same document; its
        item is encoded then.
        """
        wanted = {row.donor: row.item.content_hash for row in rows if row.donor is not None}
        if not wanted:
            return {}
        columns = ("id", "content_hash", "embedded_at", "vector")
        table = self._fetched(In("id", tuple(wanted)), columns)
        vectors = vectors_of(table)
        return {
            row["id"]: (vectors[n], row["embedded_at"])
            for n, row in enumerate(table.select(columns[:3]).to_pylist())
            if row["content_hash"] == wanted[row["id"]]
        }


def _items(change: Changed | Touched, existing: Mapping[str, StoredRow]) -> Sequence[Item]:
    """Return what the source holds now."""
    return change.items if isinstance(change, Changed) else _restamped(existing.values(), change.occurred_at)


def _restamped(rows: Iterable[StoredRow], occurred_at: datetime) -> list[Item]:
    """The items that stored rows were made from, under another time."""
    return [
        Item(
            source_id=row["source_id"],
            item_index=row["item_index"],
            modality=Modality(row["modality"]),
            text=row["text"],
            uri=row["uri"],
            content_hash=row["content_hash"],
            occurred_at=occurred_at,
            page=row["page"],
            start=row["start"],
            end=row["end"],
            content=Path(row["uri"]) if row["modality"] == Modality.IMAGE and "://" not in row["uri"] else None,
            metadata=row["metadata"],
        )
        for row in rows
    ]
