"""`GET /metrics`: figures as JSON, and for Prometheus as text; the text also at a port of its own.

`vectorize serve` takes the port with `door.listening.bind_metrics` before anything starts; the application serves it as
long as it runs, by `serve_metrics`.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Annotated, Any

import anyio.to_thread
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import BaseModel, Field
from starlette.types import ASGIApp

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.core.worker_queues import QUEUES
from vectorize_pipelines.encoders import encoder_cache
from vectorize_pipelines.errors import LedgerError, VectorizeError
from vectorize_pipelines.gateway import problems
from vectorize_pipelines.gateway.door.auth import Scope, requires
from vectorize_pipelines.gateway.door.browser_guard import BrowserGuard
from vectorize_pipelines.gateway.door.listening import is_loopback
from vectorize_pipelines.gateway.door.origins import ServerAddress, loopback_hosts
from vectorize_pipelines.gateway.monitoring.checks.report import CHECK_SECONDS
from vectorize_pipelines.gateway.monitoring.exposition import (
    LedgerReading,
    Snapshot,
    WorkerRuns,
    expose,
    wants_text,
)
from vectorize_pipelines.gateway.monitoring.measuring import RequestFigures
from vectorize_pipelines.gateway.problems import Problem
from vectorize_pipelines.gateway.services import Services, services_of

_NO_STORE = {"Cache-Control": "no-store"}
_TEXTS: dict[str, Any] = {
    kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")
}

router = APIRouter(tags=["metrics"], dependencies=[Depends(requires(Scope.READ))])


class MetricsModel(BaseModel):
    """Figures over the requests that the ledger has, which forgets old ones, and what goes on at the moment."""

    total_tasks: int
    pending_tasks: int
    processing_tasks: int
    completed_tasks: int
    failed_tasks: int
    cancelled_tasks: int
    average_processing_time: float = Field(description="seconds, of the completed ones; 0 where there are none")
    total_vectors_generated: int
    active_workers: int | None = Field(
        description="workers that live, where runs wait for workers, else runs in progress; null: this cannot be known "
        "at the moment"
    )
    queue_size: int | None = Field(description="requests that wait; null: this cannot be known at the moment")
    as_of: datetime = Field(description="when the ledger was read; with millions of requests not each time")


@router.get(
    "/metrics",
    summary="Figures: JSON, or Prometheus' text where `Accept` prefers text/plain or application/openmetrics-text",
    response_model=MetricsModel,
    responses={200: {"description": "The figures", "content": _TEXTS}},
)
async def metrics(
    request: Request, services: Annotated[Services, Depends(services_of)], response: Response
) -> MetricsModel | Response:
    """Return the figures."""
    accept = request.headers.get("accept", "")
    if wants_text(accept):
        return await _text(services, request.app.state.request_figures, accept)
    response.headers.update(_NO_STORE)
    report, ledger = await asyncio.gather(services.health.report(), _read_ledger(services))
    counts, sums = ledger.counts.value, ledger.sums.value.present
    return MetricsModel(
        total_tasks=sum(counts.values()),
        pending_tasks=counts[RequestState.PENDING],
        processing_tasks=counts[RequestState.PROCESSING],
        completed_tasks=counts[RequestState.COMPLETED],
        failed_tasks=counts[RequestState.FAILED],
        cancelled_tasks=counts[RequestState.CANCELLED],
        average_processing_time=sums.seconds / sums.timed if sums.timed else 0.0,
        total_vectors_generated=sums.vectors,
        active_workers=report.active_workers,
        queue_size=report.queue_size,
        as_of=min(ledger.counts.as_of, ledger.sums.as_of),
    )


async def _read_ledger(services: Services) -> LedgerReading:
    counts, sums = await asyncio.gather(services.figures.counts(), services.figures.sums())
    return LedgerReading(counts, sums)


async def _read_worker_runs(services: Services) -> WorkerRuns | None:
    """Return the runs that wait for workers or are executed by one; None: they need none, or Redis does not answer."""
    if services.settings.run_launcher != "celery":
        return None
    try:
        workers, waiting = await asyncio.gather(
            services.workers.answer(CHECK_SECONDS), services.queue_lengths.answer(CHECK_SECONDS)
        )
    except (TimeoutError, VectorizeError):
        return None  # `vectorize_part_up` says why
    running = Counter(each.run_queue for each in workers)
    return WorkerRuns(waiting, {queue: running[queue] for queue in QUEUES})


async def _text(services: Services, requests: RequestFigures, accept: str) -> Response:
    """Return the text that Prometheus reads, without the ledger's figures where it cannot be asked."""
    report, worker_runs = await asyncio.gather(services.health.report(), _read_worker_runs(services))
    try:
        ledger = await _read_ledger(services)
    except (LedgerError, Problem):
        ledger = None  # `vectorize_part_up` says why
    snapshot = Snapshot(report, ledger, worker_runs, len(encoder_cache().loaded()))
    text, media_type = await anyio.to_thread.run_sync(expose, snapshot, requests, accept)
    return Response(text, headers={**_NO_STORE, "Content-Type": media_type})


@asynccontextmanager
async def serve_metrics(
    bound: socket.socket | None,
    services: Services,
    requests: RequestFigures,
    door: Callable[[ASGIApp, ServerAddress], ASGIApp],
) -> AsyncIterator[None]:
    """Serve the text at a socket from `bind_metrics`, on the running event loop, until the end of the block.

    On a loopback address it is open to every program of this machine, but not to pages of other origins; anywhere else
    it asks for a token with the scope `read`, through the same `door` as everything.
    """
    if bound is None:
        yield
        return
    settings = services.settings.gateway
    host, port = bound.getsockname()[:2]
    if is_loopback(host):
        app: ASGIApp = BrowserGuard(metrics_app(services, requests, guarded=False), loopback_hosts(port))
    else:
        address = ServerAddress(host, port, tls=settings.tls_certificate is not None)
        app = door(metrics_app(services, requests, guarded=True), address)
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[bound]), name="metrics-port")
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if not serving.done():
            yield
    finally:
        server.should_exit = True
        await serving


def metrics_app(services: Services, requests: RequestFigures, *, guarded: bool) -> FastAPI:
    """Return the application of the metrics port. `guarded`: a layer in front has found out who calls."""
    app = FastAPI(openapi_url=None)
    problems.install(app)

    @app.get("/metrics", dependencies=[Depends(requires(Scope.READ))] if guarded else [])
    async def text(request: Request) -> Response:
        return await _text(services, requests, request.headers.get("accept", ""))

    return app


class _Server(uvicorn.Server):
    """A server beside the main one, which alone listens to signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
