"""Writes objects into a collection of Weaviate and removes them, until all are, or names those that are not.

Called by `weaviate`.
"""

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.errors import StoreError, StoreUnavailableError
from vectorize_pipelines.stores.weaviate_connection import failures, may_pass, passing_reason
from vectorize_pipelines.stores.weaviate_filters import ID_PROPERTY
from vectorize_pipelines.stores.weaviate_texts import read

if TYPE_CHECKING:
    from weaviate.classes.data import DataObject
    from weaviate.collections import Collection as Native

    from vectorize_pipelines.settings import WeaviateSettings
    from vectorize_pipelines.stores.weaviate_filters import Condition

_NAMED = 10


def insert(
    native: "Native[Any, Any]",
    items: "Sequence[DataObject[Any, None]]",
    settings: "WeaviateSettings",
    pauses: Sequence[float],
) -> None:
    """Writes the objects, several requests at a time; returns when the server has acknowledged all of them.

    Raises `StoreError` naming the records that stay refused, and what the client raises where no request gets
    through; what other requests wrote stays.
    """
    requests = _split(items, settings.batch_rows, settings.concurrency)
    with ThreadPoolExecutor(min(settings.concurrency, len(requests)), "vectorize-weaviate") as pool:
        refused = list(pool.map(lambda request: _inserted(native, request, pauses), requests))
    reasons = {record: reason for one in refused for record, reason in one.items()}
    if reasons:
        named = "; ".join(f"{record}: {reason}" for record, reason in list(reasons.items())[:_NAMED])
        more = f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
        kind = StoreUnavailableError if all(map(passing_reason, reasons.values())) else StoreError
        raise kind(f"Weaviate refused {len(reasons)} of {len(items)} records, by id: {named}{more}")


def _split(
    items: "Sequence[DataObject[Any, None]]", most: int, concurrency: int
) -> "list[Sequence[DataObject[Any, None]]]":
    """Requests of one size, so many that all threads end at about the same time."""
    number = math.ceil(len(items) / most)
    if number > concurrency:
        number = math.ceil(number / concurrency) * concurrency
    rows = math.ceil(len(items) / number)
    return [items[first : first + rows] for first in range(0, len(items), rows)]


def _inserted(
    native: "Native[Any, Any]", request: "Sequence[DataObject[Any, None]]", pauses: Sequence[float]
) -> dict[str, str]:
    """The records that stay refused, by id, with the reason. One that may not pass is tried again once all the same."""
    outstanding = list(request)
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
                return dict(zip(ids, reasons.values(), strict=True))
        time.sleep(pauses[attempt])
    raise AssertionError("the last attempt returns or raises")


def _refused(native: "Native[Any, Any]", request: "Sequence[DataObject[Any, None]]") -> Mapping[int, str]:
    """The places of what the server refused of a request, with its reason."""
    from weaviate.exceptions import WeaviateInsertManyAllFailedError

    try:
        answer = native.data.insert_many(request)
    except WeaviateInsertManyAllFailedError as error:
        return dict.fromkeys(range(len(request)), error.message)
    return {index: error.message for index, error in sorted(answer.errors.items())}


def remove(native: "Native[Any, Any]", matching: "Condition", pauses: Sequence[float]) -> int:
    """Deletes what matches and gives how many that were; the server takes some thousands at a time.

    Raises `StoreError` where the server goes on finding rows that it does not delete, and what the client raises: a
    call that fails is not tried again here, since nobody could count what it has deleted.
    """
    from weaviate.classes.query import Filter

    if matching is False:
        return 0
    where = Filter.by_property(ID_PROPERTY).is_none(False) if matching is True else matching
    deleted, failed = 0, 0
    while True:
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
