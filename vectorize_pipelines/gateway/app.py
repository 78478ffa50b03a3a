"""The ASGI application of `vectorize serve`: its routes, and the layers in front of them.

A request passes, from the outside: what counts it, what browsers may send, how much one caller may take, who it is,
the routes.
"""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, nullcontext
from importlib.metadata import version

from fastapi import FastAPI
from starlette.types import ASGIApp

from vectorize_pipelines.gateway import disconnects, openapi, problems
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.door.auth import Access, Door
from vectorize_pipelines.gateway.door.limits import Limits
from vectorize_pipelines.gateway.door.origins import Origins, ServerAddress
from vectorize_pipelines.gateway.door.tokens import Tokens
from vectorize_pipelines.gateway.monitoring.measuring import MeasuredRequests, RequestFigures
from vectorize_pipelines.gateway.routes import dagster as dagster_routes
from vectorize_pipelines.gateway.routes import (
    diagnosis,
    embeddings,
    health,
    live,
    metrics,
    pages,
    risk,
    search,
    signin,
    task_views,
    tasks,
)
from vectorize_pipelines.gateway.routes.direct import check_dependencies
from vectorize_pipelines.gateway.services import Services, open_services
from vectorize_pipelines.settings import Settings

TITLE = "vectorize-pipelines"

#: What goes on beside the routes as long as their services are open.
Beside = Callable[[Services], AbstractAsyncContextManager[None]]


def create_app(
    settings: Settings,
    dagster: DagsterAddress,
    tokens: Tokens,
    address: ServerAddress,
    *,
    metrics_port: socket.socket | None = None,
    ending: ExitStack | None = None,
) -> ASGIApp:
    """Return the application; what it needs is opened when the server starts it.

    address       where the server listens, by which it knows what browsers call it, and whether only this machine does
    metrics_port  from `listening.bind_metrics`; None: metrics are served among the routes alone
    ending        closed by the server once it is to stop, before it waits for requests under way: ends those that last
    """
    access, figures = Access(tokens, loopback=address.is_loopback), RequestFigures()

    def behind_the_door(app: ASGIApp, at: ServerAddress) -> ASGIApp:
        return Origins(Limits(Door(app, access), settings.gateway), settings, at)

    @asynccontextmanager
    async def beside(services: Services) -> AsyncIterator[None]:
        if ending is not None:
            ending.callback(services.live.end)
            ending.callback(services.risks.end)
        async with metrics.serve_metrics(metrics_port, services, figures, behind_the_door):
            yield

    app = create_routes(settings, dagster, figures, beside)
    app.state.sign_in = signin.SignIn(access)
    app.include_router(signin.router)
    return MeasuredRequests(behind_the_door(app, address), figures)


def create_routes(
    settings: Settings,
    dagster: DagsterAddress,
    figures: RequestFigures | None = None,
    beside: Beside = lambda services: nullcontext(),
) -> FastAPI:
    """Return the routes without the layers in front of them, which say who calls.

    figures  of the requests to the server, as the layer in front of the routes takes them
    """

    @asynccontextmanager
    async def opened(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings, dagster) as services, beside(services):
            app.state.services = services
            yield

    app = FastAPI(title=TITLE, version=version(TITLE), docs_url=None, redoc_url=None, lifespan=opened)
    app.state.request_figures = figures or RequestFigures()
    problems.install(app)
    disconnects.install(app)
    openapi.install(app)
    # Those that are called most come first: FastAPI asks one route after the other, which takes a tenth of a small
    # request for ten of them. The id of a task may hold slashes: the routes that ask for one task come after those with
    # something behind it.
    app.include_router(tasks.submitting)
    app.include_router(dagster_routes.direct)
    for part in (embeddings, search, dagster_routes, health, pages, live, risk, metrics, diagnosis, task_views):
        app.include_router(part.router)
    app.include_router(tasks.cancelling)
    app.include_router(tasks.by_hand)
    check_dependencies(app)
    return app
