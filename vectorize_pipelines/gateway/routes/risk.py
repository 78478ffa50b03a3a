"""Risks as they are assessed: the WebSocket `/ws/risk`, the same for whoever asks once, and the pictures of groups."""

import contextlib
import json
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Depends, Query, WebSocket
from pydantic import BaseModel
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from vectorize_pipelines.gateway.door.auth import Scope, requires
from vectorize_pipelines.gateway.problems import Problem, documented
from vectorize_pipelines.gateway.risk.feed import RiskFeed
from vectorize_pipelines.gateway.risk.hub import RiskSubscription, StreamEndedError
from vectorize_pipelines.gateway.services import Services, services_of
from vectorize_pipelines.messaging.assessments import RiskAssessmentResultMessage, RiskLevel

#: After so long without a detection a message comes that says no more than that the server is there.
HEARTBEAT_SECONDS = 15.0
#: A longer address is refused anyway.
_MOST_CAMERAS = 1_000
_GOING_AWAY = 1001
#: A picture never changes, and is only for whoever may see it.
_KEPT = {"Cache-Control": "private, max-age=3600, immutable"}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The picture", "content": dict.fromkeys(("image/jpeg", "image/png", "image/webp"), _BINARY)},
    **documented(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
}

router = APIRouter(tags=["risk"], dependencies=[Depends(requires(Scope.READ))])

Cameras = Annotated[
    list[str], Query(alias="camera_id", max_length=_MOST_CAMERAS, description="only these cameras; without one, all")
]


class DetectionModel(BaseModel):
    """The assessed risks of one detection.

    `missing` has the indices of groups whose results did not come in time, `late` says that a later one came before.
    """

    type: Literal["state", "detection"]
    camera_id: str
    message_id: str
    timestamp: datetime
    complete: bool
    risk_level: RiskLevel | None
    risk_score: float | None
    groups_total: int
    groups: list[RiskAssessmentResultMessage]
    missing: list[int]
    late: bool


class CamerasModel(BaseModel):
    """The latest detection of each camera."""

    cameras: list[DetectionModel]


@router.websocket("/ws/risk")
async def stream_risks(
    websocket: WebSocket,
    services: Annotated[Services, Depends(services_of)],
    cameras: Cameras = [],  # noqa: B006 -- FastAPI hands in another one
) -> None:
    """Send the latest detection of each camera, and then each further one, with what was assessed of its groups."""
    async with services.risks.listening(cameras) as (feed, subscription):
        await websocket.accept()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_until_gone, websocket, tasks.cancel_scope)
            await _send(websocket, feed, subscription)
            tasks.cancel_scope.cancel()


@router.get(
    "/risk/cameras",
    summary="The latest detection of each camera",
    response_model=CamerasModel,
    responses=documented(HTTPStatus.UNPROCESSABLE_ENTITY),
)
async def latest_risks(
    services: Annotated[Services, Depends(services_of)],
    cameras: Cameras = [],  # noqa: B006 -- FastAPI hands in another one
) -> Response:
    """Return the latest detection of each camera of the last minutes, with what was assessed of its groups."""
    async with services.risks.listening(cameras) as (feed, _):
        states = ",".join(feed.hub.states(cameras))
    return Response(f'{{"cameras":[{states}]}}', media_type="application/json")


@router.get(
    "/risk/picture",
    summary="The picture of a group that is assessed",
    response_class=Response,
    responses=_PICTURE,
)
async def picture(services: Annotated[Services, Depends(services_of)], task_id: str) -> Response:
    """Return the picture of a task's group. Pictures are kept in memory while somebody follows `/ws/risk`."""
    found = services.risks.picture(task_id)
    if found is None:
        raise Problem(HTTPStatus.NOT_FOUND, f"no picture of the task {task_id[:100]!r} is kept")
    return Response(found.content, media_type=found.media_type, headers=_KEPT)


async def _send(websocket: WebSocket, feed: RiskFeed, subscription: RiskSubscription) -> None:
    """Send what comes until the stream ends or the client is gone."""
    with contextlib.suppress(WebSocketDisconnect):
        try:
            while True:
                text = await subscription.next(HEARTBEAT_SECONDS)
                await websocket.send_text(_alive(feed) if text is None else text)
        except StreamEndedError as ended:
            await websocket.close(_GOING_AWAY, str(ended))


def _alive(feed: RiskFeed) -> str:
    return json.dumps({"type": "alive", "receiving": feed.is_receiving})


async def _until_gone(websocket: WebSocket, scope: anyio.CancelScope) -> None:
    """Pass over what a client says, until it closes."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
    scope.cancel()
