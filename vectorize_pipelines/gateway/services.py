"""What routes work with: opened when the server starts, closed when it ends."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from starlette.requests import HTTPConnection

from vectorize_pipelines.core.worker_queues import QUEUES
from vectorize_pipelines.encoders.configured import lease_configured
from vectorize_pipelines.gateway.dagster.client import DagsterAddress, DagsterClient
from vectorize_pipelines.gateway.dagster.proxy import DagsterProxy
from vectorize_pipelines.gateway.encoding.batching import EncodingQueue
from vectorize_pipelines.gateway.encoding.served_models import ServedModels
from vectorize_pipelines.gateway.live.events import LiveEvents
from vectorize_pipelines.gateway.monitoring.checks.question import Question
from vectorize_pipelines.gateway.monitoring.checks.report import HealthChecks
from vectorize_pipelines.gateway.monitoring.figures import LedgerFigures
from vectorize_pipelines.gateway.risk.feed import LiveRisks
from vectorize_pipelines.gateway.stored.opened_store import OpenedStore
from vectorize_pipelines.gateway.stored.thumbnails import Thumbnails
from vectorize_pipelines.gateway.tasks.submitting import Submissions
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.heartbeats import Heartbeat, workers
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.queue_lengths import queue_lengths
from vectorize_pipelines.state.request_totals import RequestTotals


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that routes share; safe for all of them at once.

    ledger         blocks: call it in a thread (`anyio.to_thread.run_sync`)
    figures        counts, rates and sums over the ledger, remembered for a while
    store          the vector store; its `call` does not block
    thumbnails     of the images of rows
    models         which models clients may name
    encoding       encodes texts and images, for all requests together
    submissions    takes requests in, finds them, and cancels them
    live           changes of state, for streams
    risks          what cameras are assessed to show, for WebSockets
    workers        asks for the heartbeats of the workers that live
    queue_lengths  asks how many runs wait for a worker in each queue
    health         whether everything is there
    dagster        GraphQL of Dagster's web server
    dagster_proxy  the same server, for what clients send to it
    """

    settings: Settings
    ledger: RequestLedger
    figures: LedgerFigures
    store: OpenedStore
    thumbnails: Thumbnails
    models: ServedModels
    encoding: EncodingQueue
    submissions: Submissions
    live: LiveEvents
    risks: LiveRisks
    workers: Question[list[Heartbeat]]
    queue_lengths: Question[dict[str, int]]
    health: HealthChecks
    dagster: DagsterClient
    dagster_proxy: DagsterProxy


@asynccontextmanager
async def open_services(settings: Settings, dagster: DagsterAddress) -> AsyncIterator[Services]:
    """Open everything; nothing is asked of another server yet, which may still be starting. Raises `LedgerError`."""
    async with AsyncExitStack() as stack:
        ledger, totals = RequestLedger.open(settings), RequestTotals.open(settings)
        store, thumbnails = OpenedStore(settings), Thumbnails(settings)
        living = Question("workers", partial(workers, settings))
        lengths = Question("queues", partial(queue_lengths, settings, QUEUES))
        for opened in (ledger, totals, store, thumbnails, living, lengths):
            stack.callback(opened.close)
        client = await stack.enter_async_context(DagsterClient(dagster))
        figures = await stack.enter_async_context(LedgerFigures(totals))
        yield Services(
            settings=settings,
            ledger=ledger,
            figures=figures,
            store=store,
            thumbnails=thumbnails,
            models=ServedModels(settings, store.get),
            encoding=await stack.enter_async_context(
                EncodingQueue(partial(lease_configured, settings), settings.gateway.max_waiting_texts)
            ),
            submissions=await stack.enter_async_context(
                Submissions(settings, ledger, client, figures.seconds_behind_all)
            ),
            live=await stack.enter_async_context(LiveEvents(settings, ledger)),
            risks=await stack.enter_async_context(LiveRisks(settings)),
            workers=living,
            queue_lengths=lengths,
            health=await stack.enter_async_context(HealthChecks(settings, totals, client, living)),
            dagster=client,
            dagster_proxy=await stack.enter_async_context(DagsterProxy(dagster, settings.gateway)),
        )


def services_of(connection: HTTPConnection) -> Services:
    """Return the services of the server that a request came to; a dependency of routes."""
    services: Services = connection.app.state.services
    return services
