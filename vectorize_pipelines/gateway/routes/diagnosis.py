"""The routes that show the workers of the installation: `GET /api/v1/diagnosis/workers/distributed` and `…/status`.

The addresses are those of the earlier service. Its third one, by which a task is submitted by hand, is in
`routes.tasks`, beside the one that does the same.
"""

import socket
from collections.abc import Iterable, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from vectorize_pipelines.core.worker_queues import QUEUES
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.gateway.door.auth import Scope, requires
from vectorize_pipelines.gateway.problems import Problem, documented
from vectorize_pipelines.gateway.services import Services, services_of
from vectorize_pipelines.state.heartbeats import Heartbeat

#: So long the server that keeps the heartbeats may take to answer.
ANSWER_SECONDS = 10.0

router = APIRouter(prefix="/api/v1/diagnosis/workers", tags=["diagnosis"], dependencies=[Depends(requires(Scope.READ))])

UsedServices = Annotated[Services, Depends(services_of)]
_RESPONSES = documented(HTTPStatus.SERVICE_UNAVAILABLE)


class WorkerModel(BaseModel):
    """A process that executes runs, as its last heartbeat describes it."""

    model_config = ConfigDict(from_attributes=True)

    node_id: str = Field(description="names this process and no other one")
    name: str = Field(description="the name of its host, as people call it")
    host: str
    queues: list[str] = Field(description="the queues that it takes runs from")
    models: list[str] = Field(description="the models that are loaded")
    memory_bytes: int
    gpu: str | None = Field(description="the device that it computes on; null: the CPU")
    run_id: str | None = Field(description="the run that it executes; null: it waits for one")
    run_queue: str | None = Field(description="the queue that this run waited in")
    started: datetime
    last_heartbeat: datetime


class WorkerCounts(BaseModel):
    """Numbers of processes: `busy` ones execute a run, `idle` ones wait for one."""

    total: int
    busy: int
    idle: int


class WorkersModel(WorkerCounts):
    """Workers, and their numbers by queue. A worker counts in each queue that it takes runs from."""

    queues: dict[str, WorkerCounts] = Field(description="every queue, those without a worker too")
    workers: list[WorkerModel] = Field(description="by name and id")


class HostWorkersModel(WorkersModel):
    """The workers of one host."""

    host: str = Field(description="the host that the HTTP server runs on")


@router.get(
    "/distributed",
    summary="The workers of the installation that live, on all hosts",
    response_model=WorkersModel,
    responses=_RESPONSES,
)
async def distributed(services: UsedServices, response: Response) -> WorkersModel:
    """List them. One that was killed is listed until four of its heartbeats have failed to come."""
    response.headers["Cache-Control"] = "no-store"
    return WorkersModel(**_content(await _living(services)))


@router.get(
    "/status",
    summary="The workers that live on the host of the HTTP server",
    response_model=HostWorkersModel,
    responses=_RESPONSES,
)
async def status(services: UsedServices, response: Response) -> HostWorkersModel:
    """List them. In a container the host is the container."""
    response.headers["Cache-Control"] = "no-store"
    host = socket.gethostname()
    return HostWorkersModel(host=host, **_content([each for each in await _living(services) if each.host == host]))


async def _living(services: Services) -> list[Heartbeat]:
    """Return the workers that live. Raises `Problem` where the server that knows them cannot be asked."""
    try:
        return await services.workers.answer(ANSWER_SECONDS)
    except TimeoutError:
        problem = f"the heartbeats of the workers could not be read within {ANSWER_SECONDS:g} s"
    except VectorizeError as error:
        problem = str(error)
    raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, problem, headers={"Retry-After": "5"})


def _content(found: Sequence[Heartbeat]) -> dict[str, object]:
    """Return the fields of a `WorkersModel`."""
    queues = {queue: _counts(each for each in found if queue in each.queues) for queue in QUEUES}
    workers = [WorkerModel.model_validate(each) for each in found]
    return {**_counts(found).model_dump(), "queues": queues, "workers": workers}


def _counts(found: Iterable[Heartbeat]) -> WorkerCounts:
    is_busy = [each.run_id is not None for each in found]
    busy = sum(is_busy)
    return WorkerCounts(total=len(is_busy), busy=busy, idle=len(is_busy) - busy)
