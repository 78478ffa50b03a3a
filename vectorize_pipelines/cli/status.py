"""`vectorize status ID`: what became of a request. Does not import Dagster."""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

import click

from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.settings import Settings, load_settings


class UnknownRequestError(VectorizeError):
    """Nothing is known of a request with this id."""

    exit_code = 8


@click.command()
@click.argument("request_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print what is known as JSON.")
def command(request_id: str, as_json: bool) -> None:
    """Say what became of the request ID (its task_id): state, times, vectors, error, callback.

    One that waits in its topic is pending, with an estimate of the seconds until it is done, where others have been
    done before. Exits with 8 where nothing is known of it.
    """
    found = known(load_settings(), request_id)
    if found is None:
        raise UnknownRequestError(
            f"no request {request_id!r}: it was not sent, or it was forgotten (ledger.retention_days); "
            "`vectorize requests` lists those that are known"
        )
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    callback = found.pop("callback")
    for name, value in found.items():
        if value is not None:
            click.echo(f"{name:13}  {value}")
    if callback is not None:
        reason = f": {callback['error']}" if callback["error"] else ""
        click.echo(f"{'callback':13}  {callback['state']} after {callback['attempts']} attempts{reason}")


def known(settings: Settings, request_id: str) -> dict[str, Any] | None:
    """What ledger, callbacks and topics know of a request, as `status --json` prints it; None where it is nothing."""
    from vectorize_pipelines.ledger import RequestLedger
    from vectorize_pipelines.messaging.callbacks import CallbackOutbox

    with closing(RequestLedger.open(settings)) as ledger:
        row, rates = ledger.get(request_id), ledger.rates()
    if row is None:
        return _waiting(settings, request_id, rates)
    with closing(CallbackOutbox.open(settings)) as outbox:
        callback = outbox.status(request_id)
    return {**as_json_row(row), "estimated_seconds": None, "callback": None if callback is None else asdict(callback)}


def _waiting(settings: Settings, request_id: str, rates: Mapping[Any, Any]) -> dict[str, Any] | None:
    """The same for a request that no run has taken up yet."""
    if settings.kafka.bootstrap_servers is None:
        return None
    from vectorize_pipelines.ledger import RequestRow
    from vectorize_pipelines.messaging.waiting import find_waiting
    from vectorize_pipelines.request_state import RequestState

    found = find_waiting(settings.kafka, request_id)
    if found is None:
        return None
    origin = found.request.origin
    row = RequestRow(
        request_id=request_id,
        state=RequestState.PENDING,
        modality=found.modality,
        submitted_at=datetime.fromtimestamp(origin.timestamp_ms / 1000, UTC),
        topic=origin.topic,
        partition=origin.partition,
        offset=origin.offset,
        timestamp_ms=origin.timestamp_ms,
        collection=found.request.collection,
        items=len(found.request.items),
    )
    rate = rates.get(found.modality)
    speed = None if rate is None else rate.requests_per_second
    estimate = None if speed is None else round((found.ahead + 1) / speed, 1)
    return {**as_json_row(row), "estimated_seconds": estimate, "callback": None}


def as_json_row(row: Any) -> dict[str, Any]:
    """A `RequestRow` as JSON has it: under the names of requests and result events, times in ISO 8601, UTC."""
    values = {each.name: getattr(row, each.name) for each in fields(row)}
    told = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
    task_id, status = told.pop("request_id"), told.pop("state")
    return {"task_id": task_id, "status": status, "progress": 1.0 if row.state.is_final else 0.0, **told}
