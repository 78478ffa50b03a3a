"""Requests in the ledger of a test, and a server that knows nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx2

from tests.gateway.running import as_caller, running
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.app import create_routes
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.door.auth import Caller, Scope
from vectorize_pipelines.gateway.monitoring.measuring import MeasuredRequests
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow

#: Nothing listens there.
NO_DAGSTER = DagsterAddress("http://127.0.0.1:1")
READER = Caller.of("reader", Scope.READ)
NOBODY = Caller.of("nobody")


@contextmanager
def served(
    settings: Settings, caller: Caller = READER, dagster: DagsterAddress = NO_DAGSTER
) -> Iterator[httpx2.Client]:
    """A client of a server of these settings, which takes each call for one of `caller`."""
    routes = create_routes(settings, dagster)
    with (
        running(as_caller(MeasuredRequests(routes, routes.state.request_figures), caller)) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def new_row(request_id: str, *, sent: float = 0.0) -> RequestRow:
    """A request that waits, sent so many seconds after the first ones of the test."""
    return RequestRow(
        request_id=request_id,
        state=RequestState.PENDING,
        modality=Modality.TEXT,
        submitted_at=datetime.now(UTC),
        collection="texts",
        topic="",
        partition=0,
        offset=0,
        timestamp_ms=1_700_000_000_000 + round(sent * 1000),
        items=1,
    )


def taken_up(row: RequestRow, run_id: str = "run-1") -> RequestRow:
    """The same while a run processes it."""
    return replace(row, state=RequestState.PROCESSING, started_at=datetime.now(UTC), run_id=run_id)


def ended(
    row: RequestRow, state: RequestState = RequestState.COMPLETED, *, vectors: int = 1, seconds: float = 1.0
) -> RequestRow:
    """The same once it has ended, after so many seconds."""
    now = datetime.now(UTC)
    failed = state is RequestState.FAILED
    return replace(
        row,
        state=state,
        started_at=now - timedelta(seconds=seconds),
        finished_at=now,
        run_id="run-1",
        vectors=vectors,
        error_class="CorruptImageError" if failed else None,
        error_message="it is no image" if failed else None,
    )


@contextmanager
def ledger_of(settings: Settings) -> Iterator[RequestLedger]:
    """The ledger as runs and the gateway note in it."""
    ledger = RequestLedger.open(settings)
    yield ledger
    ledger.close()
