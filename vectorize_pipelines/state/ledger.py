"""The request ledger: what became of each request. Users ask it; no control flow of ours does.

It is derived: what is lost of it comes back by replaying the topics.
"""

import base64
import binascii
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from typing import Any, Self

import sqlalchemy as sa

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import FINAL_STATES, RequestState
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database, Text, purge_rows
from vectorize_pipelines.state.request_rows import (
    ERROR_CHARACTERS,
    RequestRow,
    microseconds,
    requests,
    row_of,
    storable,
    storable_id,
    values_of,
)

#: Larger metadata are left out of pages, which would else take a thousand times as much.
LISTED_METADATA_CHARACTERS = 4096
#: Ids that one query of `get_many` asks for.
IDS_TOGETHER = 500
#: The columns of a page.
_LISTED = (
    *(column for column in requests.c if column.name != "metadata"),
    sa.case((sa.func.length(requests.c.metadata) <= LISTED_METADATA_CHARACTERS, requests.c.metadata)).label("metadata"),
)


class InvalidCursorError(VectorizeError):
    """A place to go on from that did not come from an earlier page."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list, newest first. `next` is what to give as `after` for the next part; None: this is the last."""

    rows: tuple[RequestRow, ...]
    next: str | None


class RequestLedger:
    """The table of requests. Safe for use by several threads. Every method may raise `LedgerError`."""

    def __init__(self, database: Database):
        self._database = database
        self._upsert = database.bulk_upsert(requests, _replaces)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the ledger of an installation, made where there is none. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings))

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._database.close()

    def record(self, rows: Sequence[RequestRow]) -> None:
        """Note what became of requests, all or nothing.

        A row of an older message never replaces one of a newer. Of rows of one message the latest call wins, but
        `pending` replaces no other state, and `processing` no final one: the taker of a request may note it after a
        run has taken it up.
        """
        latest: dict[str, RequestRow] = {}
        for row in rows:
            known = latest.setdefault(row.request_id, row)
            if known is not row and _outranks(row, known):
                latest[row.request_id] = row
        if latest:
            with self._database.write() as connection:
                self._upsert(connection, [values_of(row) for row in latest.values()])

    def get(self, request_id: str) -> RequestRow | None:
        """Return what became of a request; None where nothing is known of it."""
        with self._database.read() as connection:
            found = connection.execute(
                sa.select(requests).where(requests.c.request_id == storable_id(request_id))
            ).first()
        return None if found is None else row_of(found)

    def get_many(self, request_ids: Collection[str]) -> dict[str, RequestRow]:
        """Return what became of each of these requests, by its id; one of which nothing is known is missing."""
        asked = {storable_id(request_id): request_id for request_id in request_ids}
        ids = list(asked)
        found: dict[str, RequestRow] = {}
        with self._database.read() as connection:
            for start in range(0, len(ids), IDS_TOGETHER):
                some = ids[start : start + IDS_TOGETHER]
                for each in connection.execute(sa.select(requests).where(requests.c.request_id.in_(some))):
                    found[asked[each.request_id]] = row_of(each)
        return found

    def page(
        self,
        states: Collection[RequestState] | None = None,
        limit: int = 50,
        after: str | None = None,
        *,
        task_type: str | None = None,
        skip: int = 0,
    ) -> Page:
        """Return a page of requests in these states (None: all), of one type (None: all), the latest submitted first.

        A cursor stays good while rows are added and removed: no row that stays in its state is missed or repeated, as
        it may be where pages are counted by `skip`, which also costs the more the larger it is. Metadata of more than
        `LISTED_METADATA_CHARACTERS` are left out. Raises `InvalidCursorError`.
        """
        place = None if after is None else _place(after)
        wanted, most = sorted(set(states or RequestState)), skip + limit + 1
        # One statement sees one moment: a request that changes its state meanwhile is there once. What is merged are
        # entries of an index alone.
        parts = sa.union_all(
            *(sa.select(_newest(state, task_type, most, place).subquery()) for state in wanted)
        ).subquery()
        merged = sa.select(parts).order_by(parts.c.submitted_us.desc(), parts.c.request_id.desc())
        chosen = merged.limit(limit + 1).offset(skip).subquery()
        query = (
            sa.select(*_LISTED)
            .select_from(chosen)
            .join(requests, requests.c.request_id == chosen.c.request_id)
            .order_by(chosen.c.submitted_us.desc(), chosen.c.request_id.desc())
        )
        with self._database.read() as connection:
            found = connection.execute(query).all()
        last = found[limit - 1] if len(found) > limit else None
        following = None if last is None else _cursor(last.submitted_us, last.request_id)
        return Page(tuple(row_of(each) for each in found[:limit]), following)

    def completed(
        self, modality: Modality, limit: int, *, run_id: str | None = None, days: tuple[date, date] | None = None
    ) -> list[RequestRow]:
        """Return the completed requests with rows in the store that were submitted last: of all, a run, or some days.

        `days`: first and last one, both included, in UTC.
        """
        wanted = [
            requests.c.state == RequestState.COMPLETED.value,
            requests.c.modality == modality.value,
            requests.c.vectors > 0,
        ]
        if run_id is not None:
            wanted.append(requests.c.run_id == run_id)
        if days is not None:
            begin, end = (datetime.combine(day, time_of_day(), UTC) for day in days)
            wanted.append(requests.c.submitted_us >= microseconds(begin))
            wanted.append(requests.c.submitted_us < microseconds(end + timedelta(days=1)))
        query = sa.select(requests).where(*wanted).order_by(requests.c.submitted_us.desc()).limit(limit)
        with self._database.read() as connection:
            return [row_of(found) for found in connection.execute(query)]

    def fail(self, rows: Sequence[RequestRow], error: VectorizeError, at: datetime) -> int:
        """Note that requests failed with this error, all or nothing; return how many of them did.

        One of which these rows are no longer the latest stays as it is.
        """
        failed = 0
        with self._database.write() as connection:
            for row in rows:
                known = (
                    requests.c.request_id == storable_id(row.request_id),
                    requests.c.state == row.state.value,
                    sa.tuple_(requests.c.timestamp_ms, requests.c.topic, requests.c.partition, requests.c.offset)
                    == row.version,
                    requests.c.run_id.is_not_distinct_from(row.run_id),
                )
                failed += connection.execute(
                    sa.update(requests)
                    .where(*known)
                    .values(
                        state=RequestState.FAILED.value,
                        finished_us=microseconds(at),
                        error_class=type(error).__name__,
                        error_message=storable(str(error), ERROR_CHARACTERS),
                    )
                ).rowcount
        return failed

    def purge(self, finished_before: datetime) -> int:
        """Forget requests in a final state that finished before then; return their number."""
        old = sa.and_(requests.c.state.in_(FINAL_STATES), requests.c.finished_us < microseconds(finished_before))
        return purge_rows(self._database, requests, old)


def cursor_before(time: datetime) -> str:
    """Return the cursor for `page` of the requests that were submitted before then."""
    return _cursor(microseconds(time), "")


def _outranks(new: RequestRow, old: RequestRow) -> bool:
    if new.version != old.version:
        return new.version > old.version
    return _stage(new.state) >= _stage(old.state)


def _stage(state: RequestState) -> int:
    return 2 if state.is_final else int(state is RequestState.PROCESSING)


def _replaces(new: Any, old: Any) -> sa.ColumnElement[bool]:
    """Return `_outranks` in SQL."""
    versions = [sa.tuple_(row.timestamp_ms, row.topic, row.partition, row.offset) for row in (new, old)]
    pending, unfinished = {RequestState.PENDING}, set(RequestState) - FINAL_STATES
    stays = sa.or_(
        sa.and_(new.state.in_(_literals(pending)), old.state.not_in(_literals(pending))),
        sa.and_(new.state.in_(_literals(unfinished)), old.state.not_in(_literals(unfinished))),
    )
    return sa.or_(versions[0] > versions[1], sa.and_(versions[0] == versions[1], sa.not_(stays)))


def _literals(states: Collection[RequestState]) -> list[sa.ColumnElement[str]]:
    # Part of the statement, not parameters: a statement whose condition has any is sent row by row.
    return [sa.literal_column(f"'{state.value}'", Text) for state in sorted(states)]


def _newest(state: RequestState, task_type: str | None, limit: int, place: tuple[int, str] | None) -> sa.Select[Any]:
    """Return the places of requests in a state, all of them or those of a type, the latest submitted first."""
    order = sa.tuple_(requests.c.submitted_us, requests.c.request_id)
    query = sa.select(requests.c.submitted_us, requests.c.request_id).where(requests.c.state == state.value)
    if task_type is not None:
        query = query.where(requests.c.task_type == task_type)
    if place is not None:
        query = query.where(order < place)
    return query.order_by(requests.c.submitted_us.desc(), requests.c.request_id.desc()).limit(limit)


def _cursor(submitted_us: int, request_id: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([submitted_us, request_id]).encode()).decode().rstrip("=")


def _place(cursor: str) -> tuple[int, str]:
    try:
        decoded = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        submitted_us, request_id = decoded
    except (ValueError, TypeError, binascii.Error, RecursionError):
        submitted_us, request_id = None, None
    if type(submitted_us) is not int or type(request_id) is not str or not -(2**63) <= submitted_us < 2**63:
        raise InvalidCursorError(f"{cursor[:100]!r} is no cursor; give the `next` of an earlier page")
    return submitted_us, request_id
