"""`vectorize lag`: what waits in the topics of requests."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import click

from vectorize_pipelines.settings import load_settings

MODALITIES = ("text", "image", "document")


@click.command()
@click.argument("modalities", nargs=-1, type=click.Choice(MODALITIES), metavar="[text|image|document]...")
@click.option("--json", "as_json", is_flag=True, help="Print the lag of every partition as JSON.")
def command(modalities: Sequence[str], as_json: bool) -> None:
    """Say how many messages wait, by topic: from offsets alone, no message is read.

    Marks of transactions count as messages, so that the figure may be a little too high.
    """
    from vectorize_pipelines.items import Modality
    from vectorize_pipelines.messaging.clients import admin
    from vectorize_pipelines.messaging.lag import partition_lags

    settings = load_settings().kafka
    client = admin(settings)
    wanted = [Modality(name) for name in modalities or MODALITIES]
    lags = [each for modality in wanted for each in partition_lags(settings, modality, client)]
    if as_json:
        rows = [{**asdict(each), "lag": each.lag} for each in lags]
        found = {"group": settings.group, "lag": sum(each.lag for each in lags), "partitions": rows}
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    topics = dict.fromkeys(each.topic for each in lags)
    width = max(len(topic) for topic in topics)
    for topic in topics:
        own = [each for each in lags if each.topic == topic]
        spread = " ".join(str(each.lag) for each in own)
        click.echo(f"{topic:{width}}  {sum(each.lag for each in own):>9}  by partition: {spread}")
