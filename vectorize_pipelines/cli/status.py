"""`vectorize status ID`: what became of a request. Does not import Dagster."""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from vectorize_pipelines.cli.tables import print_table
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.home import enter_home

#: Requests before one that are counted: in well under a second.
MOST_AHEAD = 1_000_000


class UnknownRequestError(VectorizeError):
    """A request with an id of which nothing is known."""

    exit_code = 8


@click.command()
@click.argument("request_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print what is known as JSON.")
def command(request_id: str, as_json: bool) -> None:
    """Say what became of the request ID (its task_id): state, times, vectors, what was left out, error, callback.

    One that waits in its topic is pending, with an estimate of the seconds until it is done, where others have been
    done before. Exits with 8 where nothing is known of it.
    """
    found = known(enter_home(), request_id)
    if found is None:
        raise UnknownRequestError(
            f"no request {request_id!r}: it was not sent, or it was forgotten (ledger.retention_days); "
            "`vectorize requests` lists those that are known"
        )
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    callback, warnings = found.pop("callback"), found.pop("warnings")
    rows = [(name, _shown(value)) for name, value in found.items() if value is not None]
    rows += [(each["kind"], f"{each['what']}; {each['remedy']}") for each in warnings]
    if callback is not None:
        reason = f": {callback['error']}" if callback["error"] else ""
        rows.append(("callback", f"{callback['state']} after {callback['attempts']} attempts{reason}"))
    print_table(("field", "value"), rows)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)


def known(settings: Settings, request_id: str) -> dict[str, Any] | None:
    """Return all that ledger, callbacks and topics know of a request, as `status --json` prints it; None: nothing."""
    from vectorize_pipelines.core.request_state import RequestState
    from vectorize_pipelines.state.callbacks import CallbackOutbox
    from vectorize_pipelines.state.database import Database
    from vectorize_pipelines.state.ledger import RequestLedger
    from vectorize_pipelines.state.request_totals import RequestTotals

    estimate: float | None = None
    with closing(Database.open(settings)) as database:
        totals = RequestTotals(database)
        row, rates = RequestLedger(database).get(request_id), totals.rates()
        if row is not None and row.state is RequestState.PENDING and row.modality in rates:
            estimate = rates[row.modality].seconds_for(totals.waiting_before(row, MOST_AHEAD) + 1)
    if row is None:
        return _waiting(settings, request_id, rates)
    with closing(CallbackOutbox.open(settings)) as outbox:
        callback = outbox.status(request_id)
    return {
        **row.as_dict(),
        "estimated_seconds": estimate,
        "callback": None if callback is None else asdict(callback),
    }


def _waiting(settings: Settings, request_id: str, rates: Mapping[Any, Any]) -> dict[str, Any] | None:
    """Return what is known of a request that no run has taken up yet."""
    if settings.kafka.bootstrap_servers is None:
        return None
    from vectorize_pipelines.core.request_state import RequestState
    from vectorize_pipelines.messaging.waiting import find_waiting
    from vectorize_pipelines.state.request_rows import RequestRow

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
        task_type=found.request.task_type.value,
        metadata=found.request.metadata,
    )
    rate = rates.get(found.modality)
    estimate = None if rate is None else rate.seconds_for(found.ahead + 1)
    return {**row.as_dict(), "estimated_seconds": estimate, "callback": None}
