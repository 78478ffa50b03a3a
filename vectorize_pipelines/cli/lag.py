"""`vectorize lag`: what waits in the topics that runs follow."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import click

from vectorize_pipelines.cli.tables import print_table
from vectorize_pipelines.kafka.followed import FOLLOWED_NAMES, followed_topic
from vectorize_pipelines.state.home import enter_home

REQUESTS = ("text", "image", "document")


@click.command()
@click.argument("topics", nargs=-1, type=click.Choice(FOLLOWED_NAMES), metavar=f"[{'|'.join(FOLLOWED_NAMES)}]...")
@click.option("--json", "as_json", is_flag=True, help="Print the lag of every partition as JSON.")
def command(topics: Sequence[str], as_json: bool) -> None:
    """Say how many messages wait, by topic: from offsets alone, no message is read. By default those of requests.

    Marks of transactions count as messages, so that the figure may be a little too high.
    """
    from vectorize_pipelines.kafka.clients import admin
    from vectorize_pipelines.kafka.lag import partition_lags

    settings = enter_home().kafka
    client = admin(settings)
    wanted = [followed_topic(settings, name) for name in topics or REQUESTS]
    lags = [each for followed in wanted for each in partition_lags(settings, followed, client)]
    if as_json:
        rows = [{**asdict(each), "lag": each.lag} for each in lags]
        found = {"group": settings.group, "lag": sum(each.lag for each in lags), "partitions": rows}
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    table = []
    for topic in dict.fromkeys(each.topic for each in lags):
        own = [each.lag for each in lags if each.topic == topic]
        table.append((topic, str(sum(own)), f"by partition: {' '.join(map(str, own))}"))
    print_table(("topic", "waiting", "of which"), table, right=("waiting",))
