"""Routes whose endpoint takes the request as it is: who may call them is asked there as anywhere."""

from http import HTTPStatus

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.testclient import TestClient

from vectorize_pipelines.gateway import problems
from vectorize_pipelines.gateway.problems import Problem
from vectorize_pipelines.gateway.routes.direct import DirectRoute, check_dependencies


async def refuse(request: Request) -> None:
    raise Problem(HTTPStatus.FORBIDDEN, f"nobody may {request.method}")


async def answer(request: Request) -> Response:
    return Response(await request.body())


def app_with(router: APIRouter, *depends: object, included: bool = False) -> FastAPI:
    router.post("/")(answer)
    app = FastAPI(dependencies=[] if included else [*depends])  # type: ignore[list-item]
    problems.install(app)
    app.include_router(router, prefix="/direct", dependencies=[*depends] if included else [])  # type: ignore[list-item]
    return app


def test_dependencies_of_the_router_are_called() -> None:
    free = TestClient(app_with(APIRouter(route_class=DirectRoute)))
    assert free.post("/direct/", content=b"x").content == b"x"
    guarded = app_with(APIRouter(route_class=DirectRoute, dependencies=[Depends(refuse)]))
    check_dependencies(guarded)
    refused = TestClient(guarded).post("/direct/")
    assert (refused.status_code, refused.json()["detail"]) == (HTTPStatus.FORBIDDEN, "nobody may POST")


@pytest.mark.parametrize("included", [False, True])
def test_dependencies_that_would_not_be_called_are_refused(included: bool) -> None:
    app = app_with(APIRouter(route_class=DirectRoute), Depends(refuse), included=included)
    with pytest.raises(TypeError, match="/direct/ is a direct route"):
        check_dependencies(app)
