"""`vectorize workers`: the processes of workers that live, on all hosts."""

import json

import click

from vectorize_pipelines.cli.tables import print_table
from vectorize_pipelines.state.home import enter_home


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def command(as_json: bool) -> None:
    """List the processes that execute runs: where they are, what they have loaded, what they do.

    One that was killed is listed until four of its heartbeats have failed to come.
    """
    from vectorize_pipelines.state.heartbeats import workers

    found = workers(enter_home())
    if as_json:
        rows = [
            {
                "node_id": each.node_id,
                "name": each.name,
                "host": each.host,
                "queues": list(each.queues),
                "models": list(each.models),
                "memory_bytes": each.memory_bytes,
                "gpu": each.gpu,
                "run_id": each.run_id,
                "run_queue": each.run_queue,
                "started": each.started.isoformat(),
                "last_heartbeat": each.last_heartbeat.isoformat(),
            }
            for each in found
        ]
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    if not found:
        click.echo("no worker lives: `vectorize worker` starts one", err=True)
        return
    table = [
        (
            each.node_id,
            each.host,
            each.run_id or "waits",
            ", ".join(each.models) or "-",
            ", ".join(each.queues),
            f"{each.last_heartbeat:%H:%M:%S}",
        )
        for each in found
    ]
    print_table(("node", "host", "run", "models", "queues", "last heartbeat (UTC)"), table)
