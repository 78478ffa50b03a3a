"""`vectorize status ID`: what became of a request. Does not import Dagster."""

import json
from contextlib import closing
from dataclasses import asdict, fields
from datetime import datetime
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

    Exits with 8 where nothing is known of it.
    """
    found = known(load_settings(), request_id)
    if found is None:
        raise UnknownRequestError(
            f"no request {request_id!r}: it was not sent, no run has taken it up yet, or it was forgotten "
            "(ledger.retention_days); `vectorize requests` lists those that are known"
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
    """What ledger and callbacks know of a request, as `status --json` prints it; None where it is nothing."""
    from vectorize_pipelines.ledger import RequestLedger
    from vectorize_pipelines.messaging.callbacks import CallbackOutbox

    with closing(RequestLedger.open(settings)) as ledger:
        row = ledger.get(request_id)
    if row is None:
        return None
    with closing(CallbackOutbox.open(settings)) as outbox:
        callback = outbox.status(request_id)
    return {**as_json_row(row), "callback": None if callback is None else asdict(callback)}


def as_json_row(row: Any) -> dict[str, Any]:
    """A `RequestRow` as JSON has it: times in ISO 8601, UTC."""
    values = {each.name: getattr(row, each.name) for each in fields(row)}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
