"""Requests as runs of their own, where no Kafka is configured: the job `embed_request`, launched by GraphQL.

Called by `gateway.tasks.submitting`.
"""

import asyncio
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic_core import from_json

from vectorize_pipelines.core import request_runs
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import DagsterUnavailableError
from vectorize_pipelines.gateway.dagster.client import DagsterClient
from vectorize_pipelines.gateway.problems import Problem
from vectorize_pipelines.gateway.tasks.noting import pending_row
from vectorize_pipelines.gateway.tasks.refusals import NotAccepted, too_late
from vectorize_pipelines.messaging.messages import Origin
from vectorize_pipelines.messaging.outgoing import OutgoingRequest
from vectorize_pipelines.state.request_rows import RequestRow

#: A run is a process with a model of its own: whoever has more to embed at a time configures Kafka.
MOST_RUNS = 100
#: Runs of one call, so that it answers well within the time that a call has.
_TOGETHER = 5
#: So long a run may be about to start, when Dagster cannot end it yet.
_STARTING_SECONDS = 15.0
_PAUSE_SECONDS = 0.5
_REASON_CHARACTERS = 300

_LAUNCH = """
mutation LaunchRequests($params: [ExecutionParams!]!) {
  launchMultipleRuns(executionParamsList: $params) {
    __typename
    ... on LaunchMultipleRunsResult {
      launchMultipleRunsResult {
        __typename
        ... on LaunchRunSuccess { run { runId } }
        ... on RunConfigValidationInvalid { errors { message } }
        ... on Error { message }
      }
    }
    ... on PythonError { message }
  }
}
"""
_TERMINATE = """
mutation TerminateRequest($runId: String!) {
  terminateRun(runId: $runId) {
    __typename
    ... on TerminateRunFailure { message }
    ... on Error { message }
  }
}
"""
_STATUS = "query RequestRun($runId: ID!) { runOrError(runId: $runId) { ... on Run { status } } }"
#: Answers after which a run may have been stored nevertheless.
_UNCLEAR = frozenset({"PythonError"})
_STATE_OF_ENDED = {"SUCCESS": RequestState.COMPLETED, "FAILURE": RequestState.FAILED}


class RequestRuns:
    """Launches and ends runs of the job."""

    def __init__(self, dagster: DagsterClient):
        self._dagster = dagster

    async def launch(self, requests: Sequence[OutgoingRequest]) -> list[RequestRow | NotAccepted]:
        """Launch a run for each request, and return in this order what is to be noted of it, or why there is none."""
        outcomes: list[RequestRow | NotAccepted] = []
        for start in range(0, len(requests), _TOGETHER):
            outcomes += await self._launch(requests[start : start + _TOGETHER])
            last = outcomes[-1]
            if isinstance(last, NotAccepted):
                outcomes += [NotAccepted(last.reason) for _ in requests[len(outcomes) :]]
                break
        return outcomes

    async def terminate(self, task_id: str, run_id: str) -> str:
        """End the run of a request, and return `cancelled` or, where that is still to happen, `cancelling`.

        Raises `Problem` where the run has ended by itself or cannot be ended, and `DagsterUnavailableError`.
        """
        deadline = time.monotonic() + _STARTING_SECONDS
        while True:
            answer = (await self._dagster.query(_TERMINATE, {"runId": run_id}))["terminateRun"]
            # Of its own, since the answer's run is that of before.
            status = (await self._dagster.query(_STATUS, {"runId": run_id}))["runOrError"].get("status")
            if status == "CANCELED":
                return "cancelled"
            if status == "CANCELING" or (status and answer["__typename"] == "TerminateRunSuccess"):
                return "cancelling"
            if status in _STATE_OF_ENDED:
                raise too_late(task_id, _STATE_OF_ENDED[status])
            if status is None:
                raise Problem(HTTPStatus.NOT_FOUND, f"the run {run_id} of request {task_id!r} is gone from Dagster")
            if time.monotonic() > deadline:
                reason = f"Dagster cannot end the run {run_id}, which is {status}: {_reason(answer)}"
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, reason, headers={"Retry-After": "5"})
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _launch(self, requests: Sequence[OutgoingRequest]) -> list[RequestRow | NotAccepted]:
        submitted_ms = time.time_ns() // 1_000_000
        parameters = [_parameters(each, submitted_ms) for each in requests]
        try:
            answer = (await self._dagster.query(_LAUNCH, {"params": parameters}))["launchMultipleRuns"]
        except DagsterUnavailableError as error:
            return [NotAccepted(str(error), certain=_was_not_reached(error)) for _ in requests]
        results = answer.get("launchMultipleRunsResult", [answer] * len(requests))
        return [_outcome(each, result, submitted_ms) for each, result in zip(requests, results, strict=True)]


def _parameters(request: OutgoingRequest, submitted_ms: int) -> dict[str, Any]:
    tags = {request_runs.REQUEST_ID_TAG: request.request.task_id, request_runs.SUBMITTED_TAG: str(submitted_ms)}
    return {
        "selector": {
            "repositoryLocationName": request_runs.LOCATION,
            "repositoryName": request_runs.REPOSITORY,
            "jobName": request_runs.JOB,
        },
        "runConfigData": {"ops": {request_runs.OP: {"config": from_json(request.value)}}},
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
    }


def _outcome(request: OutgoingRequest, result: dict[str, Any], submitted_ms: int) -> RequestRow | NotAccepted:
    if result["__typename"] != "LaunchRunSuccess":
        certain = result["__typename"] not in _UNCLEAR
        return NotAccepted(f"Dagster did not launch the run: {_reason(result)}", certain=certain)
    # The same version as that of the rows which the run will note (`pipeline.requests.single`).
    origin = Origin("", 0, submitted_ms, submitted_ms)
    return pending_row(request, origin, result["run"]["runId"])


def _reason(answer: dict[str, Any]) -> str:
    """Return what Dagster says, without the lines of a stack trace that may follow."""
    errors = answer.get("errors") or [answer]
    text = str(errors[0].get("message") or answer["__typename"])
    return text.partition("\n")[0][:_REASON_CHARACTERS]


def _was_not_reached(error: DagsterUnavailableError) -> bool:
    """Return whether the call cannot have been received, so that it has certainly launched nothing."""
    import aiohttp

    return isinstance(error.__cause__, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
