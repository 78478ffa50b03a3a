"""The state of a task that was launched as a run, where the run ended without saying what became of the task.

Called by the route of a task. A run notes in the ledger what became of its task, unless its process is killed.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from anyio import to_thread

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import DagsterUnavailableError
from vectorize_pipelines.gateway.services import Services
from vectorize_pipelines.state.request_rows import RequestRow

logger = logging.getLogger(__name__)

#: Runs say what becomes of their tasks; only later is Dagster asked.
TRUSTED_SECONDS = 5.0
#: Set to "true" on a failed run that Dagster starts again, as another run.
_WILL_RETRY_TAG = "dagster/will_retry"

_RUN = """
query RunOfTask($runId: ID!) {
  runOrError(runId: $runId) { __typename ... on Run { status startTime endTime tags { key value } } }
}
"""
_STATE_OF = {
    "STARTED": RequestState.PROCESSING,
    "CANCELING": RequestState.PROCESSING,
    "SUCCESS": RequestState.COMPLETED,
    "FAILURE": RequestState.FAILED,
    "CANCELED": RequestState.CANCELLED,
}
#: Named as the failure sensor names it, which notes it once it has seen the run.
_DIED = "RunDiedError"
_DIED_MESSAGE = "the run ended without saying what became of the task; its log may say why"


async def with_state_of_run(services: Services, row: RequestRow) -> RequestRow:
    """Return the row, with the state of its run where that is ahead of what the ledger says.

    Raises `LedgerError`. Where Dagster cannot be asked, what the ledger says is all that is known.
    """
    if row.state.is_final or not row.has_own_run or row.run_id is None:
        return row
    noted_at = row.started_at or row.submitted_at
    if (datetime.now(UTC) - noted_at).total_seconds() < TRUSTED_SECONDS:
        return row
    try:
        run = (await services.dagster.query(_RUN, {"runId": row.run_id}))["runOrError"]
    except DagsterUnavailableError as error:
        logger.info("the run %s of a task cannot be looked at: %s", row.run_id, error)
        return row
    state = _STATE_OF.get(run.get("status", ""))
    if state is None or state is row.state or _is_started_again(run):
        return row
    if state.is_final:  # which the run may have noted just before it ended
        noted = await to_thread.run_sync(services.ledger.get, row.request_id)
        row = noted or row
    return row if row.state.is_final else _as_of_run(row, state, run)


def _is_started_again(run: Mapping[str, Any]) -> bool:
    return {"key": _WILL_RETRY_TAG, "value": "true"} in run["tags"]


def _as_of_run(row: RequestRow, state: RequestState, run: Mapping[str, Any]) -> RequestRow:
    failed = state is RequestState.FAILED
    return replace(
        row,
        state=state,
        started_at=row.started_at or _time(run["startTime"]),
        finished_at=_time(run["endTime"]) if state.is_final else None,
        error_class=_DIED if failed else None,
        error_message=_DIED_MESSAGE if failed else None,
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
