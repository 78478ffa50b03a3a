"""The routes that take requests in and cancel them: POST /tasks/submit, POST /tasks/batch, DELETE /tasks/{task_id}.

POST /api/v1/diagnosis/tasks/{task_id}/submit, an address of the earlier service, submits one by hand.

A body is the JSON of a message. It is read here and not by FastAPI: what a message may hold is decided in one place for
whoever sends one, and reading it once costs a fraction of what models of every field would.
"""

from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, Field
from pydantic_core import from_json, to_json

from vectorize_pipelines.core.request_state import FINAL_STATES, RequestState
from vectorize_pipelines.gateway.door.auth import Scope, requires
from vectorize_pipelines.gateway.problems import (
    FieldProblem,
    Problem,
    documented,
    documented_problem,
    invalid_fields,
)
from vectorize_pipelines.gateway.routes.direct import DirectRoute
from vectorize_pipelines.gateway.services import Services, services_of
from vectorize_pipelines.gateway.tasks.refusals import REFUSED, UNCONFIRMED, too_late
from vectorize_pipelines.messaging.messages import (
    MAX_BATCH,
    MAX_PRIORITY,
    PRIORITY_NAMES,
    InvalidMessageError,
    RequestModel,
    TaskType,
)
from vectorize_pipelines.messaging.other_forms import BYTE_ORDER_MARK
from vectorize_pipelines.messaging.outgoing import OutgoingRequest, prepare
from vectorize_pipelines.settings import KafkaSettings
from vectorize_pipelines.state.request_rows import RequestRow

Parsed = TypeVar("Parsed")

#: A larger body is taken apart in a thread, so that other requests are answered meanwhile.
_LARGE_BYTES = 64 * 1024
_PENDING = RequestState.PENDING.value
_NOT_AN_OBJECT = "must be a JSON object with task_type and data"


class Submitted(BaseModel):
    """A request that was accepted."""

    task_id: str = Field(description="the one that was given, or a new one")
    status: str = Field("pending", description="pending", json_schema_extra={"enum": ["pending"]})
    created_at: str = Field(
        description="the time of its message, ISO 8601 in UTC", json_schema_extra={"format": "date-time"}
    )
    estimated_processing_time: float | None = Field(
        description="seconds until it is done, at the speed of those done last; null where none is known"
    )


class SubmittedBatch(BaseModel):
    """Requests that were accepted, in the order in which they were sent."""

    tasks: list[Submitted]
    total: int


class Cancelled(BaseModel):
    """The answer to a cancellation."""

    task_id: str
    status: str = Field(
        description="cancelling: as far as it has not been done, it will not be; cancelled: nothing is done any more",
        json_schema_extra={"enum": ["cancelled", "cancelling"]},
    )


def _request_schema() -> dict[str, Any]:
    """The schema of a request, with what its model leaves to `messages.decode`."""
    schema = RequestModel.model_json_schema()
    fields = schema["properties"]
    document = {"type": "object", "required": ["content"], "properties": {"content": {"type": "string"}}}
    fields["task_type"]["enum"] = [each.value for each in TaskType]
    fields["data"] = {
        "description": "a text; a URI of an image or document; a document as an object with `content`; for "
        "batch_vectorization a list of these, or of objects with `task_type` and `data`",
        "anyOf": [
            {"type": "string", "minLength": 1},
            document,
            {"type": "array", "minItems": 1, "maxItems": MAX_BATCH},
        ],
    }
    fields["priority"] = {
        "default": 0,
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": MAX_PRIORITY},
            {"type": "string", "enum": list(PRIORITY_NAMES)},
            {"type": "null"},
        ],
    }
    return schema


def _body(schema: dict[str, Any], examples: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": shown}}}}


_EXAMPLE = {"task_type": "text_vectorization", "data": "a boat at sea", "collection": "notes"}
_DOCUMENT = {"task_type": "document_vectorization", "collection": "papers"}
_PDF = {"content": "JVBERi0xLjQKJeLjz9MK", "content_type": "application/pdf", "title": "Tides"}
_EXAMPLES: dict[str, Any] = {
    "a text": _EXAMPLE,
    "a document by its address": {**_DOCUMENT, "data": "https://example.com/pdf/2101.00001v2"},
    "a PDF file within the request": {**_DOCUMENT, "data": _PDF},
    "a page as a data: URI": {**_DOCUMENT, "data": "data:text/html;charset=utf-8,%3Cp%3EThe%20tide"},
}


_REQUEST = _request_schema()
_LIST = {"type": "array", "minItems": 1, "maxItems": MAX_BATCH, "items": _REQUEST}
_BATCH = {
    "anyOf": [
        _LIST,
        {"type": "object", "required": ["tasks"], "properties": {"tasks": _LIST}, "additionalProperties": False},
    ]
}
_UNCONFIRMED_TASK = {
    "type": "object",
    "required": ["task_id", "status"],
    "properties": {
        "task_id": {"type": "string"},
        "status": {"type": "string", "enum": ["pending", REFUSED, UNCONFIRMED]},
    },
}
_SUBMIT_PROBLEMS = documented(HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.TOO_MANY_REQUESTS) | {
    413: documented_problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "The body is too large (setting `gateway.max_body_bytes`), or a message larger than its topic takes",
    ),
    503: documented_problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Nothing was accepted or, with `tasks`, this is what is known of each: send them again under these ids",
        {"tasks": {"type": "array", "items": _UNCONFIRMED_TASK}},
    ),
}
_CANCEL_PROBLEMS = documented(HTTPStatus.NOT_FOUND) | {
    409: documented_problem(
        HTTPStatus.CONFLICT,
        "It has ended already; `task_status` says how",
        {"task_status": {"type": "string", "enum": sorted(each.value for each in FINAL_STATES)}},
    )
}

submitting = APIRouter(
    prefix="/tasks", tags=["tasks"], dependencies=[Depends(requires(Scope.SUBMIT))], route_class=DirectRoute
)
cancelling = APIRouter(prefix="/tasks", tags=["tasks"], dependencies=[Depends(requires(Scope.SUBMIT))])
by_hand = APIRouter(
    prefix="/api/v1/diagnosis/tasks", tags=["diagnosis"], dependencies=[Depends(requires(Scope.SUBMIT))]
)


@submitting.post(
    "/submit",
    summary="Submit a request",
    response_model=Submitted,
    responses=_SUBMIT_PROBLEMS,
    openapi_extra=_body(_REQUEST, _EXAMPLES),
)
async def submit(request: Request) -> Response:
    """Accept one request: its message is in its topic and confirmed by the brokers when this answers.

    Without Kafka it has become a run of Dagster then, which a daemon starts.

    One that is sent again under a `task_id` is a newer version of it, which replaces the earlier one.
    """
    return await _submit_one(request, _read_request)


@by_hand.post(
    "/{task_id:path}/submit",
    summary="Submit a request under the id in the path",
    response_model=Submitted,
    responses=_SUBMIT_PROBLEMS,
    openapi_extra=_body(_REQUEST, _EXAMPLES),
)
async def submit_by_hand(
    task_id: Annotated[str, Path(description="id of the task; slashes in it stay as they are")], request: Request
) -> Response:
    """Accept one request as `POST /tasks/submit` does. A `task_id` in its body has to be the same.

    One that is known already becomes a newer version, as there.
    """
    return await _submit_one(request, partial(_read_request, task_id=task_id))


@submitting.post(
    "/batch",
    summary="Submit many requests",
    response_model=SubmittedBatch,
    responses=_SUBMIT_PROBLEMS,
    openapi_extra=_body(_BATCH, {"two texts": [_EXAMPLE, {**_EXAMPLE, "data": "a lamp on the shore"}]}),
)
async def submit_batch(request: Request) -> Response:
    """Accept 1 to 10,000 requests, as a list or as `tasks` of an object.

    All are checked before the first is sent. A `task_id` may be there once: which of two would be the newer one, nobody
    could say.
    """
    services = services_of(request)
    outgoing = await _parsed(request, services, _read_batch)
    rows = await services.submissions.submit(outgoing)
    tasks = [_submitted(*each, services) for each in zip(outgoing, rows, strict=True)]
    return _json({"tasks": tasks, "total": len(tasks)})


@cancelling.delete("/{task_id:path}", summary="Cancel a request", response_model=Cancelled, responses=_CANCEL_PROBLEMS)
async def cancel(task_id: str, request: Request) -> Response:
    """Cancel a request, before it is taken up or while it is processed. What it has stored already stays.

    `GET /tasks/{task_id}` says when it is cancelled, or that it was completed first.
    """
    services = services_of(request)
    row = await services.submissions.find(task_id)
    if row is None:
        raise Problem(HTTPStatus.NOT_FOUND, f"no request {task_id!r} is known")
    if row.state.is_final:
        raise too_late(task_id, row.state)
    return _json({"task_id": task_id, "status": await services.submissions.cancel(row)})


async def _submit_one(request: Request, read: Callable[[KafkaSettings, bytes], OutgoingRequest]) -> Response:
    services = services_of(request)
    outgoing = await _parsed(request, services, read)
    (row,) = await services.submissions.submit([outgoing])
    return _json(_submitted(outgoing, row, services))


async def _parsed(request: Request, services: Services, read: Callable[[KafkaSettings, bytes], Parsed]) -> Parsed:
    """Return what a body holds. Raises `Problem`, and `InvalidMessageError`."""
    # Exactly this type: a page of another origin can send any of the others without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON, as `Content-Type: application/json`")
    body = await request.body()
    if len(body) <= _LARGE_BYTES:
        return read(services.settings.kafka, body)
    return await to_thread.run_sync(read, services.settings.kafka, body, limiter=services.submissions.parsing)


def _read_request(settings: KafkaSettings, body: bytes, task_id: str | None = None) -> OutgoingRequest:
    """Return the request of a body, under `task_id` where it is given, which the body may name too."""
    message = _content(body)
    if not isinstance(message, dict):
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"the body {_NOT_AN_OBJECT}")
    if task_id is not None:
        if message.get("task_id") not in (None, task_id):
            problem = f"is not the id in the path, {task_id[:100]!r}"
            raise invalid_fields([FieldProblem(field="task_id", problem=problem)])
        message = {**message, "task_id": task_id}
    return prepare(settings, message, encode=to_json)


def _read_batch(settings: KafkaSettings, body: bytes) -> list[OutgoingRequest]:
    entries = _entries(_content(body))
    outgoing: list[OutgoingRequest] = []
    errors: list[FieldProblem] = []
    places: dict[str, int] = {}
    for place, entry in enumerate(entries):
        field = f"tasks[{place}]"
        if not isinstance(entry, dict):
            errors.append(FieldProblem(field=field, problem=_NOT_AN_OBJECT))
            continue
        try:
            each = prepare(settings, entry, encode=to_json)
        except InvalidMessageError as error:
            errors.append(_problem_within(field, error))
            continue
        first = places.setdefault(each.request.task_id, place)
        if first != place:
            errors.append(FieldProblem(field=f"{field}.task_id", problem=f"is that of tasks[{first}], too"))
        outgoing.append(each)
    if errors:
        raise invalid_fields(errors)
    return outgoing


def _content(body: bytes) -> Any:
    if not body:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "the body is empty: it must hold JSON")
    try:
        return from_json(body.removeprefix(BYTE_ORDER_MARK))
    except ValueError as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"the body is no valid JSON: {error}") from None


def _entries(content: Any) -> list[Any]:
    entries = content["tasks"] if isinstance(content, dict) and content.keys() == {"tasks"} else content
    if not isinstance(entries, list):
        problem = "must be a list of requests, by itself or as the one field of an object"
        raise invalid_fields([FieldProblem(field="tasks", problem=problem)])
    if not 1 <= len(entries) <= MAX_BATCH:
        problem = f"must have 1 to {MAX_BATCH:,} entries, not {len(entries):,}"
        raise invalid_fields([FieldProblem(field="tasks", problem=problem)])
    return entries


def _problem_within(field: str, error: InvalidMessageError) -> FieldProblem:
    if not error.field:
        return FieldProblem(field=field, problem=str(error))
    return FieldProblem(field=f"{field}.{error.field}", problem=str(error).removeprefix(f"{error.field}: "))


def _submitted(outgoing: OutgoingRequest, row: RequestRow, services: Services) -> dict[str, Any]:
    estimates = services.submissions.estimates
    return {
        "task_id": row.request_id,
        "status": _PENDING,
        "created_at": row.submitted_at.isoformat(),
        "estimated_processing_time": estimates.seconds(outgoing.modality, outgoing.request.task_type),
    }


def _json(content: dict[str, Any]) -> Response:
    return Response(to_json(content), media_type="application/json")
