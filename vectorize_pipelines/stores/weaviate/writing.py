"""Writing of objects into a collection of Weaviate and their removal, until all are done; those that are not are named.

Called by `store`. Before each request it is asked whether the run is still this process's (`check_run`): one that was
stalled between two of them would overwrite what its successor has written meanwhile.
"""

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vectorize_pipelines.errors import StoreError, StoreUnavailableError
from vectorize_pipelines.state.held_locks import check_run
from vectorize_pipelines.stores.contents import row_uuid
from vectorize_pipelines.stores.servers import retry
from vectorize_pipelines.stores.weaviate.connection import failures, may_pass, passing_reason, requests_resent
from vectorize_pipelines.stores.weaviate.filters import ID_PROPERTY
from vectorize_pipelines.stores.weaviate.rows import VECTOR
from vectorize_pipelines.stores.weaviate.texts import read

if TYPE_CHECKING:
    from weaviate.classes.data import DataObject
    from weaviate.collections import Collection as Native

    from vectorize_pipelines.settings import WeaviateSettings
    from vectorize_pipelines.stores.weaviate.filters import Condition

_NAMED = 10
#: What no record has for its id: those of the pipeline are UUIDs.
_NO_RECORD = "no record has this id"
#: Share by which a vector is lengthened to be another one: more than float32 rounds off.
_DISPLACEMENT = 2.0**-12


def insert(
    native: "Native[Any, Any]",
    items: "Sequence[DataObject[Any, None]]",
    settings: "WeaviateSettings",
    pauses: Sequence[float],
) -> int:
    """Write the objects, several requests at a time; returns how many were sent more than once.

    The server has acknowledged all of them then. Raises `StoreError` naming the records that stay refused, and what
    the client raises where no request gets through; what other requests wrote stays.
    """
    requests = _split(items, settings.batch_rows, settings.concurrency)
    with ThreadPoolExecutor(min(settings.concurrency, len(requests)), "vectorize-weaviate") as pool:
        outcomes = list(pool.map(lambda request: _inserted(native, request, pauses), requests))
    reasons = {record: reason for refused, _ in outcomes for record, reason in refused.items()}
    if reasons:
        named = "; ".join(f"{record}: {reason}" for record, reason in list(reasons.items())[:_NAMED])
        more = f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
        kind = StoreUnavailableError if all(map(passing_reason, reasons.values())) else StoreError
        raise kind(f"Weaviate refused {len(reasons)} of {len(items)} records, by id: {named}{more}")
    flush(native, pauses)
    return sum(resent for _, resent in outcomes)


def flush(native: "Native[Any, Any]", pauses: Sequence[float]) -> None:
    """Have the server write out what it has of the vector index. Raises what the client raises.

    Of requests that end at the same time it keeps the last entries of the index in memory, and loses them when it is
    killed (seen in 1.39: up to a fifth of 900 rows). A deletion, though it deletes nothing, has it write them out.
    """
    from weaviate.classes.query import Filter

    nothing = Filter.by_property(ID_PROPERTY).equal(_NO_RECORD)
    retry(lambda: native.data.delete_many(where=nothing), pauses, may_pass)


def reinsert(
    native: "Native[Any, Any]",
    items: "Sequence[DataObject[Any, None]]",
    settings: "WeaviateSettings",
    pauses: Sequence[float],
) -> None:
    """Write the objects so that the server indexes them again, whatever it has of them.

    Raises as `insert`, and `StoreUnavailableError` where the server goes on losing requests.

    The server indexes an object when it is new or its vector differs (`determineInsertStatus` in Weaviate's
    shard_write_put.go). So each is written with a vector of another length first, which points in the same direction,
    and then with its own: it is there all the while, which it would not be if it were deleted in between.
    """
    for pause in (*pauses, None):
        insert(native, [_displaced(item) for item in items], settings, pauses)
        if not insert(native, items, settings, pauses):
            return
        if pause is not None:
            time.sleep(pause)
    raise StoreUnavailableError(f"Weaviate loses some of the requests by which {len(items)} rows are indexed again")


def stored(
    native: "Native[Any, Any]",
    ids: Sequence[str],
    settings: "WeaviateSettings",
    attempt: Callable[[Callable[[], Any]], Any],
) -> "list[DataObject[Any, None]]":
    """Return the objects of these records that the server stores, whether or not any index has them.

    Filters go through an index, by UUID too; the cursor reads the objects themselves, in the order of their UUIDs.
    """
    from weaviate.classes.data import DataObject

    def found(record_id: str) -> "DataObject[Any, None] | None":
        wanted = uuid.UUID(row_uuid(record_id))
        before = uuid.UUID(int=wanted.int - 1)
        answer = attempt(lambda: native.query.fetch_objects(limit=1, after=before, include_vector=True))
        if not answer.objects or answer.objects[0].uuid != wanted:
            return None
        one = answer.objects[0]
        return DataObject(properties=one.properties, uuid=wanted, vector=one.vector[VECTOR])

    with ThreadPoolExecutor(settings.concurrency, "vectorize-weaviate") as pool:
        return [one for one in pool.map(found, ids) if one is not None]


def _displaced(item: "DataObject[Any, None]") -> "DataObject[Any, None]":
    """Return the object with a vector of the same direction and another length; for length 0, with any other vector."""
    vector = np.array(item.vector, dtype=np.float32)
    if vector.any():
        vector *= 1 + _DISPLACEMENT
    else:
        vector[0] = _DISPLACEMENT
    return replace(item, vector=vector.tolist())


def _split(
    items: "Sequence[DataObject[Any, None]]", most: int, concurrency: int
) -> "list[Sequence[DataObject[Any, None]]]":
    """Return requests of one size, so many that all threads end at about the same time."""
    number = math.ceil(len(items) / most)
    if number > concurrency:
        number = math.ceil(number / concurrency) * concurrency
    rows = math.ceil(len(items) / number)
    return [items[first : first + rows] for first in range(0, len(items), rows)]


def _inserted(
    native: "Native[Any, Any]", request: "Sequence[DataObject[Any, None]]", pauses: Sequence[float]
) -> tuple[dict[str, str], int]:
    """Write a request; returns the records that stay refused, by id, with the reason, and how many were sent again.

    One that is refused for a reason that may not pass is tried again once all the same.
    """
    outstanding = list(request)
    before, resent = requests_resent(), 0
    for attempt in range(len(pauses) + 1):
        last = attempt == len(pauses)
        try:
            reasons = _refused(native, outstanding)
        except failures() as error:
            if last or not may_pass(error):
                raise
        else:
            outstanding = [outstanding[index] for index in reasons]
            hopeless = attempt > 0 and not any(passing_reason(reason) for reason in reasons.values())
            if not reasons or last or hopeless:
                ids = [read(item.properties[ID_PROPERTY]) for item in outstanding]
                if requests_resent() > before:
                    resent = len(request)
                return dict(zip(ids, reasons.values(), strict=True)), resent
        resent = max(resent, len(outstanding))
        time.sleep(pauses[attempt])
    raise AssertionError("the last attempt returns or raises")


def _refused(native: "Native[Any, Any]", request: "Sequence[DataObject[Any, None]]") -> Mapping[int, str]:
    """Return the places of what the server refused of a request, with its reason."""
    from weaviate.exceptions import WeaviateInsertManyAllFailedError

    check_run()
    try:
        answer = native.data.insert_many(request)
    except WeaviateInsertManyAllFailedError as error:
        return dict.fromkeys(range(len(request)), error.message)
    return {index: error.message for index, error in sorted(answer.errors.items())}


def remove(native: "Native[Any, Any]", matching: "Condition", pauses: Sequence[float]) -> int:
    """Delete what matches and return how many that were; the server takes some thousands at a time.

    Raises `StoreError` where the server goes on finding rows that it does not delete, and what the client raises: a
    call that fails is not tried again here, since nobody could count what it has deleted.
    """
    from weaviate.classes.query import Filter

    if matching is False:
        return 0
    where = Filter.by_property(ID_PROPERTY).is_none(False) if matching is True else matching
    deleted, failed = 0, 0
    while True:
        check_run()
        answer = native.data.delete_many(where=where)
        deleted += answer.successful
        if answer.matches == answer.successful:
            return deleted
        if not answer.successful:
            if failed == len(pauses):
                raise StoreError(
                    f"Weaviate deleted {deleted} rows and cannot delete {answer.matches} more: its log says why"
                )
            time.sleep(pauses[failed])
            failed += 1
