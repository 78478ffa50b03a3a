"""Routes that show tasks: `GET /tasks`, `GET /tasks/{task_id}` and `GET /tasks/{task_id}/result`.

They ask the ledger, and never a topic. A message without `task_id` is called `topic/partition/offset`, so ids may hold
slashes, which stay as they are in the path: `{task_id:path}`. A path that ends in `/result` or `/events` is about the
task before that; a task whose own id ends so is found in the list only. Routes with such an end have to be added to the
application before this router, which would take them for ids.
"""

from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from math import ceil
from typing import Annotated, Any
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.responses import Response

from vectorize_pipelines.core.records import RECORD_FIELDS
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.door.auth import Scope, requires
from vectorize_pipelines.gateway.paths import PATH_PREFIX
from vectorize_pipelines.gateway.problems import FieldProblem, Problem, documented
from vectorize_pipelines.gateway.routes.run_states import with_state_of_run
from vectorize_pipelines.gateway.services import Services, services_of
from vectorize_pipelines.messaging.messages import TaskType
from vectorize_pipelines.state.ledger import InvalidCursorError
from vectorize_pipelines.state.request_rows import RequestRow
from vectorize_pipelines.stores.filters.expressions import And, Equal, Range
from vectorize_pipelines.stores.hits import records_as_json

#: Rows that pages may be counted over: the database walks over all that come before a page.
MOST_COUNTED_ROWS = 10_000
MOST_TASKS = 1000
MOST_ROWS = 1000
#: Of the number of a row, as a cursor has it.
_MOST_DIGITS = 10

router = APIRouter(prefix="/tasks", tags=["tasks"], dependencies=[Depends(requires(Scope.READ))])

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"}, description="ISO 8601, UTC")]
TaskId = Annotated[str, Path(description="id of the task; slashes in it stay as they are")]
UsedServices = Annotated[Services, Depends(services_of)]


class TaskError(BaseModel):
    """Why a task failed."""

    model_config = ConfigDict(populate_by_name=True)

    class_: str = Field(alias="class", description="kind of error")
    message: str


class TaskWarning(BaseModel):
    """What of a task is not embedded as a person would read it."""

    kind: str = Field(description="omitted: something is missing; assumed: something was guessed")
    what: str
    remedy: str


class TaskResult(BaseModel):
    """The rows of a completed task."""

    collection: str | None
    vector_count: int


class Task(BaseModel):
    """A task and its state."""

    task_id: str
    task_type: str | None = Field(description="null where it is not known: of a message that is no request")
    status: RequestState
    progress: float = Field(
        ge=0, le=1, description="part of its rows that have their vectors; 1 once it has ended, and not before"
    )
    created_at: Time
    started_at: Time | None = Field(description="when it was taken up")
    completed_at: Time | None = Field(description="when it ended, however it ended")
    processing_time: float | None = Field(description="seconds from taking it up to its end")
    estimated_processing_time: float | None = Field(
        description="seconds until it is done, at the rate of the last tasks; only of a task that waits, not in lists"
    )
    error: TaskError | None
    result: TaskResult | None = Field(description="null unless it is completed")
    warnings: list[TaskWarning] = Field(description="what of it is not embedded, and what was guessed; 20 at most")
    truncated: int = Field(description="tokens of its texts that were left out, since the model takes no more")
    metadata: dict[str, Any] | None = Field(
        description="null where they are not known; those larger than 4 KiB are left out of lists"
    )
    run_id: str | None = Field(description="run that took it up")
    run_url: str | None = Field(description="path of that run's page in Dagster's UI")
    modality: str
    collection: str | None = Field(description="null until it is known")
    items: int = Field(description="texts, images or documents in it")


class TaskList(BaseModel):
    """A page of tasks, the latest submitted first."""

    tasks: list[Task]
    total: int = Field(description="tasks that the filters let through; some seconds old where there are very many")
    page: int | None = Field(description="null with a cursor")
    page_size: int
    pages: int
    counts: dict[RequestState, int] = Field(description="tasks in each state, of this task_type where one is given")
    next_cursor: str | None = Field(description="`cursor` of the next page; null: this is the last")


class Record(BaseModel):
    """A row of a collection. `vector` is there where it was asked for."""

    id: str
    source_id: str
    item_index: int
    modality: str
    text: str | None
    uri: str | None
    page: int | None
    start: int | None
    end: int | None
    content_hash: str
    model: str
    occurred_at: Time
    partition: str
    run_id: str
    embedded_at: Time
    metadata: dict[str, Any]
    vector: list[float] = []


class TaskRows(BaseModel):
    """Rows of a completed task, by `item_index`."""

    task_id: str
    collection: str | None
    rows: list[Record]
    next_cursor: str | None = Field(description="`cursor` of the next rows; null: these are the last")


@router.get("", summary="List tasks, the latest submitted first", responses=documented(HTTPStatus.UNPROCESSABLE_ENTITY))
async def list_tasks(
    services: UsedServices,
    status_filter: Annotated[
        str | None,
        Query(
            description="only tasks in this state, in capital letters or not",
            json_schema_extra={"enum": [name for state in RequestState for name in (state.value, state.name)]},
        ),
    ] = None,
    task_type: Annotated[TaskType | None, Query(description="only tasks of this type")] = None,
    page: Annotated[
        int | None, Query(ge=1, le=MOST_COUNTED_ROWS, description="number of the page, from 1; further on: cursor")
    ] = None,
    page_size: Annotated[int, Query(ge=1, le=MOST_TASKS, description="tasks of a page")] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before; not together with page")] = None,
) -> TaskList:
    """A cursor misses and repeats nothing while tasks come in, and costs the same however far it is."""
    state = None if status_filter is None else _state(status_filter)
    if cursor is not None and page is not None:
        raise _wrong("page", "cannot be given together with cursor")
    if page is not None and page * page_size > MOST_COUNTED_ROWS:
        raise _wrong("page", f"ends after {MOST_COUNTED_ROWS:,} tasks: go on with cursor, the next_cursor of a page")
    kind = None if task_type is None else task_type.value
    counts = (await services.figures.counts(kind)).value
    return await to_thread.run_sync(partial(_list, services, counts, state, kind, page, page_size, cursor))


@router.get(
    "/{task_id:path}/result",
    summary="The rows that a completed task left in the store",
    response_model=TaskRows,
    responses=documented(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY),
)
async def rows_of_task(
    task_id: TaskId,
    services: UsedServices,
    vectors: Annotated[bool, Query(description="with the vector of each row")] = False,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS, description="rows of a page")] = 100,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the rows before")] = None,
) -> Response:
    """Rows come in the order of the batch, or of the document's passages."""
    begin = 0 if cursor is None else _place(cursor)
    content = await to_thread.run_sync(partial(_rows, services, task_id, begin, limit, vectors=vectors))
    return Response(content, media_type="application/json")


@router.get("/{task_id:path}", summary="What became of a task", responses=documented(HTTPStatus.NOT_FOUND))
async def task(task_id: TaskId, services: UsedServices) -> Task:
    """Known from the moment at which it was accepted until the ledger forgets it (`ledger.retention_days`)."""
    row = await with_state_of_run(services, _known(task_id, await services.submissions.find(task_id)))
    estimate = None
    if row.state is RequestState.PENDING:
        estimate = await services.figures.seconds_until_done(row)
    return task_of(row, estimate)


def task_of(row: RequestRow, estimate: float | None = None) -> Task:
    """Return a row of the ledger as routes show it."""
    told = row.as_dict()
    seconds = None
    if row.started_at is not None and row.finished_at is not None:
        seconds = max(0.0, (row.finished_at - row.started_at).total_seconds())
    return Task(
        task_id=told["task_id"],
        task_type=told["task_type"],
        status=told["status"],
        progress=told["progress"],
        created_at=told["submitted_at"],
        started_at=told["started_at"],
        completed_at=told["finished_at"],
        processing_time=seconds,
        estimated_processing_time=estimate,
        error=None if row.error_class is None else TaskError(class_=row.error_class, message=row.error_message or ""),
        result=_result(row),
        warnings=[TaskWarning(**each) for each in told["warnings"]],
        truncated=row.truncated,
        metadata=told["metadata"],
        run_id=row.run_id,
        run_url=None if row.run_id is None else f"{PATH_PREFIX}/runs/{quote(row.run_id, safe='')}",
        modality=told["modality"],
        collection=row.collection,
        items=row.items,
    )


def _result(row: RequestRow) -> TaskResult | None:
    if row.state is not RequestState.COMPLETED:
        return None
    return TaskResult(collection=row.collection, vector_count=row.vectors)


def _list(
    services: Services,
    counts: dict[RequestState, int],
    state: RequestState | None,
    task_type: str | None,
    page: int | None,
    page_size: int,
    cursor: str | None,
) -> TaskList:
    states = None if state is None else [state]
    skip = 0 if page is None else (page - 1) * page_size
    try:
        found = services.ledger.page(states, page_size, cursor, task_type=task_type, skip=skip)
    except InvalidCursorError as error:
        raise _wrong("cursor", str(error)) from None
    counted = sum(counts.values()) if state is None else counts[state]
    total = max(counted, skip + len(found.rows) if found.rows else 0)
    return TaskList(
        tasks=[task_of(row) for row in found.rows],
        total=total,
        page=None if cursor is not None else page or 1,
        page_size=page_size,
        pages=ceil(total / page_size),
        counts=counts,
        next_cursor=found.next,
    )


def _known(task_id: str, row: RequestRow | None) -> RequestRow:
    if row is None:
        raise Problem(
            HTTPStatus.NOT_FOUND,
            f"no task {task_id[:100]!r}: it was not accepted here, no run has taken it up yet, or it was forgotten "
            "(ledger.retention_days)",
        )
    return row


def _rows(services: Services, task_id: str, begin: int, limit: int, *, vectors: bool) -> bytes:
    """Return the answer's JSON: with vectors it is so large that the event loop had better not make it."""
    row = _known(task_id, services.ledger.get(task_id))
    if row.state is not RequestState.COMPLETED:
        raise Problem(HTTPStatus.CONFLICT, f"the task is {row.state.value}: only completed tasks have rows")
    end = begin + limit
    rows: Sequence[dict[str, Any]] = ()
    if row.collection is not None and begin < row.vectors:
        rows = _fetched(services, row.collection, task_id, (begin, end), vectors=vectors)
    next_cursor = str(end) if end < row.vectors else None
    return to_json({"task_id": task_id, "collection": row.collection, "rows": rows, "next_cursor": next_cursor})


def _fetched(
    services: Services, collection: str, task_id: str, places: tuple[int, int], *, vectors: bool
) -> Sequence[dict[str, Any]]:
    where = And((Equal("source_id", task_id), Range("item_index", *places)))
    columns = (*RECORD_FIELDS, "vector") if vectors else RECORD_FIELDS
    found = services.store.get().fetch(collection, where, columns).sort_by("item_index")
    rows = records_as_json(found.select(list(RECORD_FIELDS)))
    if vectors:
        for row, vector in zip(rows, found["vector"].to_pylist(), strict=True):
            row["vector"] = vector
    return rows


def _state(text: str) -> RequestState:
    try:
        return RequestState(text.lower())
    except ValueError:
        raise _wrong("status_filter", f"must be one of {', '.join(RequestState)}") from None


def _place(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= _MOST_DIGITS):
        raise _wrong("cursor", f"{cursor[:100]!r} is no cursor; give the `next_cursor` of an earlier answer")
    return int(cursor)


def _wrong(field: str, problem: str) -> Problem:
    errors = [FieldProblem(field=field, problem=problem)]
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{field}: {problem}", errors=errors)
