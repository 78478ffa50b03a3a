"""The routes that stream changes of state: `GET /events` for all requests, `GET /tasks/{task_id}/events` for one.

A message without `task_id` is called `topic/partition/offset`, so ids may hold slashes, which stay as they are in the
path. These routes have to be added to the application before those of `/tasks/{task_id:path}`.
"""

from collections.abc import AsyncIterator
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Path, Query, Response

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.gateway.door.auth import Scope, requires
from vectorize_pipelines.gateway.live import frames
from vectorize_pipelines.gateway.live.hub import Hub, StreamEndedError, Subscription
from vectorize_pipelines.gateway.live.order import leads_on
from vectorize_pipelines.gateway.live.sources import event_of
from vectorize_pipelines.gateway.live.stream import EventStream
from vectorize_pipelines.gateway.problems import Problem, documented
from vectorize_pipelines.gateway.routes.run_states import with_state_of_run
from vectorize_pipelines.gateway.services import Services, services_of
from vectorize_pipelines.messaging.events import ResultEvent

#: After so long without a change a line is sent that says nothing: what stands between would else end the connection.
HEARTBEAT_SECONDS = 15.0

_ALL: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events without end: `status`, whose data is a result event as JSON, and `reset`, after which a "
        "client has to load again what it shows. Comments come while nothing happens."
    },
    **documented(HTTPStatus.UNPROCESSABLE_ENTITY),
}
_ONE: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events `status`: the present state, then each further one; the stream ends after the final."},
    204: {
        "description": "The client has got the final event already: there is nothing more, and browsers stop asking."
    },
    **documented(HTTPStatus.NOT_FOUND),
}

router = APIRouter(tags=["events"], dependencies=[Depends(requires(Scope.READ))])

LastEventId = Annotated[
    str | None, Header(description="the id of the last event that the client has got; browsers send it by themselves")
]


@router.get(
    "/events",
    summary="Changes of state of all requests, as they happen",
    status_code=200,
    response_class=EventStream,
    responses=_ALL,
)
async def stream_events(
    services: Annotated[Services, Depends(services_of)],
    status: Annotated[list[RequestState] | None, Query(description="only changes to these states")] = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Stream the changes from now on or, with `Last-Event-ID`, from the one after that event.

    With Kafka these are the events of the results topic: that a request is being processed, and how it ended. Without
    Kafka they are what the ledger says, looked up twice a second.
    """
    live = services.live
    subscription = live.hub.subscribe(states=status or ())
    unsubscribe = partial(live.hub.unsubscribe, subscription)
    try:
        await live.position()
        opening = _opening(live.hub, subscription, last_event_id)
    except BaseException:
        unsubscribe()
        raise
    return EventStream(_follow_all(subscription, opening), unsubscribe)


@router.get(
    "/tasks/{task_id:path}/events",
    summary="Changes of state of one request, until it has ended",
    status_code=200,
    response_class=EventStream,
    responses=_ONE,
)
async def stream_task_events(
    services: Annotated[Services, Depends(services_of)],
    task_id: Annotated[str, Path(description="the id of the request; slashes in it stay as they are")],
    last_event_id: LastEventId = None,
) -> Response:
    """Stream the present state of a request, and every further one, until it has ended."""
    hub = services.live.hub
    # First this, then the look: what changes in between comes twice, and is told once.
    subscription = hub.subscribe(task_id)
    unsubscribe = partial(hub.unsubscribe, subscription)
    try:
        present = await _known_state(services, task_id)
    except BaseException:
        unsubscribe()
        raise
    if present.status.is_final and last_event_id == _id_of(present):
        unsubscribe()
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return EventStream(_follow_one(subscription, present, services), unsubscribe)


def _opening(hub: Hub, subscription: Subscription, last_event_id: str | None) -> list[bytes]:
    """Return what a stream of all changes begins with: what the client has missed, or that this is not known."""
    subscription.unsure = not hub.positioned.is_set()
    opening = [frames.comment("changes of state from here on")]
    if last_event_id:
        missed = hub.missed(last_event_id, subscription.states)
        if missed is None:
            opening.append(frames.reset(hub.position))
        else:
            subscription.forget()  # it is among what was missed
            opening += missed
    return opening


async def _follow_all(subscription: Subscription, opening: list[bytes]) -> AsyncIterator[bytes]:
    yield b"".join(opening)
    try:
        while True:
            taken = await subscription.take(HEARTBEAT_SECONDS)
            yield b"".join(frame for _, frame in taken) or frames.comment("still here")
    except StreamEndedError as ended:
        yield frames.comment(str(ended))


async def _follow_one(subscription: Subscription, present: ResultEvent, services: Services) -> AsyncIterator[bytes]:
    yield frames.status(present, _id_of(present))
    try:
        while not present.status.is_final:
            taken = [event for event, _ in await subscription.take(HEARTBEAT_SECONDS)]
            if not taken:
                yield frames.comment("still here")
                taken = [await _state(services, present.task_id)]
            for event in taken:
                told = await _checked(event, services)
                if told is None or present.status.is_final or not leads_on(told, present):
                    continue
                present = told
                yield frames.status(present, _id_of(present))
    except StreamEndedError as ended:
        yield frames.comment(str(ended))
    except LedgerError:
        yield frames.comment("what became of the request cannot be looked up at the moment: connect again")


async def _checked(event: ResultEvent | None, services: Services) -> ResultEvent | None:
    """Return what an event says. One that is final may be of an earlier message of the same id: the ledger knows.

    A run notes in the ledger what it sends as a final event, and does so before.
    """
    if event is None or not event.status.is_final:
        return event
    return await _state(services, event.task_id) or event


async def _known_state(services: Services, task_id: str) -> ResultEvent:
    row = await services.submissions.find(task_id)
    if row is None:
        raise Problem(HTTPStatus.NOT_FOUND, f"no request with the id {task_id[:100]!r} is known")
    return event_of(await with_state_of_run(services, row))


async def _state(services: Services, task_id: str) -> ResultEvent | None:
    row = await anyio.to_thread.run_sync(services.ledger.get, task_id, abandon_on_cancel=True)
    return None if row is None else event_of(await with_state_of_run(services, row))


def _id_of(event: ResultEvent) -> str:
    """The id of an event in the stream of one request: nobody goes on from it, but the final one ends the stream."""
    return event.status.value
