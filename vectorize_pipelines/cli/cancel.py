"""`vectorize cancel`: requests that are not wanted any more."""

import json

import click

from vectorize_pipelines.state.home import enter_home


@click.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="ID...")
@click.option("--json", "as_json", is_flag=True, help="Print the cancelled ids as JSON.")
def command(task_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel requests, as far as they have not been done.

    Counts for messages sent up to now: one that is sent under the same id later is done. What an earlier message of
    that id has stored stays. An id that nobody knows is no error, since its message may not have been read yet;
    `vectorize status` says what became of it.
    """
    from vectorize_pipelines.client import VectorizeClient

    with VectorizeClient.from_settings(enter_home().kafka) as client:
        for task_id in task_ids:
            client.cancel(task_id)
    if as_json:
        click.echo(json.dumps({"cancelled": list(task_ids)}, ensure_ascii=False, indent=2))
    else:
        for task_id in task_ids:
            click.echo(f"asked to cancel {task_id}")
