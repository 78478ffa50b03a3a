"""Answers where requests were not accepted, or not all of them, or where it is too late to cancel one.

Called by `gateway.tasks.submitting` and `gateway.tasks.launching`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.problems import Problem
from vectorize_pipelines.state.request_rows import RequestRow

#: In the member `tasks` of an error, beside `pending`: it was certainly not accepted, and that is not known.
REFUSED, UNCONFIRMED = "refused", "unconfirmed"


@dataclass(slots=True)
class NotAccepted:
    """A request that was not accepted. `certain`: it never will be; otherwise it may have been, and nobody has said."""

    reason: str
    certain: bool = True
    status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE


def refusal(task_ids: Sequence[str], outcomes: Sequence[RequestRow | NotAccepted]) -> Problem:
    """Return the answer to requests of which at least one was not accepted.

    Where any may have been accepted, it has all ids, also those that the server made: a request that is sent again
    under its id counts once, and under another it would count twice.
    """
    failed = [each for each in outcomes if isinstance(each, NotAccepted)]
    first = failed[0]
    if len(failed) == len(outcomes) and all(each.certain for each in failed):
        return Problem(first.status, f"{first.reason}; nothing was accepted", headers=_later(first.status))
    tasks = [
        {"task_id": task_id, "status": _word(outcome)} for task_id, outcome in zip(task_ids, outcomes, strict=True)
    ]
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"{len(failed)} of {len(outcomes)} requests were not confirmed: {first.reason}. An unconfirmed one may be "
        "accepted nevertheless: send it again with the task_id that `tasks` has for it, and it counts once",
        headers=_later(HTTPStatus.SERVICE_UNAVAILABLE),
        members={"tasks": tasks},
    )


def too_late(task_id: str, state: RequestState) -> Problem:
    """Return the answer to the cancellation of a request that has ended."""
    # `status` is the number of HTTP in every problem (RFC 9457).
    return Problem(
        HTTPStatus.CONFLICT,
        f"request {task_id!r} is {state.value}: there is nothing left to cancel",
        members={"task_status": state.value},
    )


def _word(outcome: RequestRow | NotAccepted) -> str:
    if isinstance(outcome, RequestRow):
        return RequestState.PENDING.value
    return REFUSED if outcome.certain else UNCONFIRMED


def _later(status: HTTPStatus) -> dict[str, str] | None:
    """Say when another attempt may succeed; one that is too large never will."""
    seconds = {HTTPStatus.SERVICE_UNAVAILABLE: "5", HTTPStatus.TOO_MANY_REQUESTS: "1"}.get(status)
    return None if seconds is None else {"Retry-After": seconds}
