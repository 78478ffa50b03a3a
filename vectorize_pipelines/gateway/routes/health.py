"""`GET /livez`, which says that the server runs, and `GET /health`, which asks what it stands on."""

from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from vectorize_pipelines.gateway.door.auth import Scope, requires
from vectorize_pipelines.gateway.monitoring.checks.report import HealthModel
from vectorize_pipelines.gateway.services import Services, services_of

router = APIRouter(tags=["health"])


class AliveModel(BaseModel):
    """The answer of a server that runs."""

    status: Literal["ok"] = "ok"


@router.get("/livez", summary="Whether the server runs; asks nothing else", response_model=AliveModel)
async def livez() -> AliveModel:
    """Answer. Open to everyone."""
    return AliveModel()


@router.get(
    "/health",
    summary="Whether everything that the server stands on is there",
    response_model=HealthModel,
    responses={
        200: {"description": "Everything that is configured is there"},
        503: {"description": "Something that is configured is away; the body is the same", "model": HealthModel},
    },
    dependencies=[Depends(requires(Scope.READ))],
)
async def health(services: Annotated[Services, Depends(services_of)], response: Response) -> HealthModel:
    """Ask the brokers, the store, the database and Dagster, side by side, each for two seconds at most."""
    report = await services.health.report()
    if report.status == "unhealthy":
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    response.headers["Cache-Control"] = "no-store"
    return report
