"""`vectorize drain`: a drain run over a modality's requests, in this process, on the project's instance."""

import time
from collections.abc import Mapping
from typing import Any

import click

from vectorize_pipelines.cli.reporting import EXIT_INTERRUPTED, report
from vectorize_pipelines.cli.running import execute_until_interrupted, large_imports
from vectorize_pipelines.cli.showing import run_log, show_failures, skipped_in_words
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.kafka.clients import require_servers
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.kafka.shards import Shard
from vectorize_pipelines.state.home import enter_home, use_dagster_home

RUN_FIGURES = (
    "messages",
    "messages_per_second",
    "dead_letters",
    "superseded",
    "cancelled",
    "tombstones",
    "lost_unread",
    "lag",
)


@click.command()
@click.argument("modality", type=click.Choice([each.value for each in Modality]))
@click.option("--once", is_flag=True, help="End when nothing waits any more, instead of following the topic.")
@click.option(
    "--shard", default="0/1", show_default=True, metavar="I/N", help="Part of the topic's partitions that is read."
)
@click.option("--force", is_flag=True, help="Encode also what has not changed.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(modality: str, once: bool, shard: str, force: bool, as_json: bool) -> int:
    """Embed the requests of MODALITY that wait in Kafka, and those that come while it runs.

    It is one run on the project's Dagster instance, as the sensors launch them, and ends as these do: when nothing has
    come for kafka.drain.idle_seconds, after kafka.drain.max_seconds, or, without --once, with the UTC day. An earlier
    run of the same part of the topic is told to end first. Ctrl-C ends it once what is in hand is finished; the rest
    waits for the next run.
    """
    settings = enter_home()
    part = Shard.parse(shard)
    require_servers(settings.kafka)
    use_dagster_home(settings)
    with large_imports():
        from vectorize_pipelines.jobs import REQUEST_JOBS
        from vectorize_pipelines.runs.tags import drain_tags

    wiring = REQUEST_JOBS[Modality(modality)]
    config = {"mode": "drain", "shard": str(part), "once": once, "force": force}
    tags = drain_tags(followed_topic(settings.kafka, modality), part)
    started = time.monotonic()
    with run_log(settings) as shown:
        result, interrupted = execute_until_interrupted(settings, wiring.job.name, wiring.asset, config, tags)
    about = {
        "modality": modality,
        "shard": str(part),
        "seconds": round(time.monotonic() - started, 2),
        **(dict.fromkeys(RUN_FIGURES, 0) if shown.stream is None else shown.stream.figures()),
        "lost_unread_offsets": [] if shown.stream is None else list(shown.stream.losses()),
    }
    code = report(result, shown.stream, about, _print, refused="dead_letters", as_json=as_json)
    return EXIT_INTERRUPTED if interrupted and result.success else code


def _print(outcome: Mapping[str, Any]) -> None:
    click.echo(
        f"{outcome['modality']}: {outcome['messages']} messages, {outcome['dead_letters']} of them dead letters, "
        f"{outcome['cancelled']} cancelled, {outcome['superseded']} superseded; {outcome['encoded']} encoded, "
        f"{skipped_in_words(outcome)}, {outcome['lag']} waiting ({outcome['seconds']} s, run {outcome['run_id'][:8]})"
    )
    if outcome["lost_unread"]:
        click.echo(f"  {outcome['lost_unread']} messages were deleted by the broker before they were read:")
        for place in outcome["lost_unread_offsets"]:
            click.echo(f"    {place}")
    show_failures(outcome["failures"], "the first thousand")
