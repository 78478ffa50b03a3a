"""Routes for people: what the server is, the pages for a browser, their files, and the API's description at `/docs`.

`gateway.app` mounts the router. Everything works without a network: Swagger UI comes from a package.
"""

import re
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vectorize_pipelines.gateway.door.auth import Scope, caller_of, requires
from vectorize_pipelines.gateway.page import STATIC, answer_file
from vectorize_pipelines.gateway.problems import Problem

router = APIRouter(tags=["pages"])
_READERS = [Depends(requires(Scope.READ))]
_HTML: dict[int | str, dict[str, Any]] = {
    200: {"description": "What the server is; a browser gets its page", "content": {"text/html": {}}}
}
_WEIGHT = re.compile(r"q=([01](?:\.\d{0,3})?)")
_LINKS = {
    "page": "/",
    "cameras": "/cameras",
    "docs": "/docs",
    "openapi": "/openapi.json",
    "tasks": "/tasks",
    "submit": "/tasks/submit",
    "batch": "/tasks/batch",
    "events": "/events",
    "collections": "/collections",
    "embeddings": "/v1/embeddings",
    "models": "/v1/models",
    "health": "/health",
    "metrics": "/metrics",
    "dagster": "/dagster/",
    "graphql": "/graphql",
}


class CallerModel(BaseModel):
    """The caller: the name of the token, and what it allows."""

    name: str
    scopes: list[Scope]


class ServiceModel(BaseModel):
    """A description of the server. `links` are paths of this server."""

    service: str
    version: str
    links: dict[str, str]
    caller: CallerModel


@router.head("/", include_in_schema=False, dependencies=_READERS)
@router.get(
    "/",
    summary="What this server is",
    response_model=ServiceModel,
    responses=_HTML,
    dependencies=_READERS,
)
def root(request: Request) -> Response:
    """Return the server's name, version and links as JSON. A client that prefers HTML gets the page for people."""
    if prefers_html(",".join(request.headers.getlist("accept")) or "*/*"):
        return answer_file(request, "index.html", vary="Accept")
    caller = caller_of(request)
    service = ServiceModel(
        service=request.app.title,
        version=request.app.version,
        links=_LINKS,
        caller=CallerModel(name=caller.name, scopes=[scope for scope in Scope if caller.may(scope)]),
    )
    return JSONResponse(service.model_dump(), headers={"Vary": "Accept", "Cache-Control": "no-store"})


@router.head("/docs", include_in_schema=False, dependencies=_READERS)
@router.get("/docs", include_in_schema=False, dependencies=_READERS)
def docs(request: Request) -> Response:
    """Return the page that shows the API's description."""
    return answer_file(request, "docs.html")


@router.head("/cameras", include_in_schema=False, dependencies=_READERS)
@router.get("/cameras", include_in_schema=False, dependencies=_READERS)
def cameras(request: Request) -> Response:
    """Return the page that shows cameras and what they are assessed to show."""
    return answer_file(request, "cameras.html")


@router.head("/static/{name:path}", include_in_schema=False)
@router.get("/static/{name:path}", include_in_schema=False)
def static(request: Request, name: str) -> Response:
    """Return a file of the pages. Who signs in needs them before, so that they are open to everyone."""
    if name not in STATIC:
        raise Problem(HTTPStatus.NOT_FOUND, "there is no such file")
    return answer_file(request, name)


def prefers_html(accept: str) -> bool:
    """Return whether an `Accept` header wants HTML rather than JSON; what leaves both open, as of curl, does not."""
    html = _preference(accept, "text/html")
    return html[0] > 0 and html > _preference(accept, "application/json")


def _preference(accept: str, media_type: str) -> tuple[float, int]:
    """The weight of a media type from 0 to 1, and how exactly the header names it."""
    weights: dict[str, float] = {}
    for each in accept.lower().split(","):
        name, *parameters = (part.strip() for part in each.split(";"))
        found = [match for part in parameters if (match := _WEIGHT.fullmatch(part))]
        weights[name] = min(1.0, float(found[0][1])) if found else 1.0
    for exactness, name in ((2, media_type), (1, f"{media_type.partition('/')[0]}/*"), (0, "*/*")):
        if name in weights:
            return weights[name], exactness
    return 0.0, 0
