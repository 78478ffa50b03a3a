"""`vectorize requests`: what became of requests, newest first. Does not import Dagster."""

import json
from contextlib import closing
from typing import TYPE_CHECKING

import click

from vectorize_pipelines.cli.tables import print_table
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.state.home import enter_home

if TYPE_CHECKING:
    from vectorize_pipelines.state.request_rows import RequestRow


@click.command()
@click.option(
    "--status",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in RequestState]),
    help="Only requests in this state; several may be given.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Requests to show.")
@click.option("--after", metavar="CURSOR", help="Go on after an earlier page, whose `next` this is.")
@click.option("--json", "as_json", is_flag=True, help="Print `requests` and `next` as JSON.")
def command(states: tuple[str, ...], limit: int, after: str | None, as_json: bool) -> None:
    """List the requests that runs have taken up, the latest submitted first."""
    from vectorize_pipelines.state.ledger import RequestLedger

    with closing(RequestLedger.open(enter_home())) as ledger:
        page = ledger.page([RequestState(state) for state in states] or None, limit, after)
    if as_json:
        found = {"requests": [row.as_dict() for row in page.rows], "next": page.next}
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    if not page.rows:
        click.echo("no requests", err=True)
        return
    rows = [
        (
            row.request_id,
            row.state.value,
            f"{row.submitted_at:%Y-%m-%d %H:%M:%S}",
            row.task_type or "-",
            row.collection or "-",
            _outcome(row),
        )
        for row in page.rows
    ]
    print_table(("request", "state", "submitted (UTC)", "type", "collection", "outcome"), rows)
    if page.next is not None:
        click.echo(f"more: --after {page.next}", err=True)


def _outcome(row: "RequestRow") -> str:
    if row.state is RequestState.PROCESSING:
        return f"{row.progress:.0%} encoded"
    return row.error_class or (f"{row.vectors} vectors" if row.state is RequestState.COMPLETED else "")
