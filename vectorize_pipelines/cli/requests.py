"""`vectorize requests`: what became of requests, newest first. Does not import Dagster."""

import json
from contextlib import closing

import click

from vectorize_pipelines.cli.status import as_json_row
from vectorize_pipelines.request_state import RequestState
from vectorize_pipelines.settings import load_settings


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
    from vectorize_pipelines.ledger import RequestLedger

    with closing(RequestLedger.open(load_settings())) as ledger:
        page = ledger.page([RequestState(state) for state in states] or None, limit, after)
    if as_json:
        found = {"requests": [as_json_row(row) for row in page.rows], "next": page.next}
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    if not page.rows:
        click.echo("no requests", err=True)
        return
    width = max(len(row.request_id) for row in page.rows)
    for row in page.rows:
        what = row.error_class or (f"{row.vectors} vectors" if row.state is RequestState.COMPLETED else "")
        submitted = f"{row.submitted_at:%Y-%m-%d %H:%M:%S}"
        click.echo(f"{row.request_id:{width}}  {row.state:10}  {submitted}  {row.collection or '-'}  {what}".rstrip())
    if page.next is not None:
        click.echo(f"more: --after {page.next}", err=True)
