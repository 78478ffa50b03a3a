"""`vectorize drain`: a drain run over a topic, in this process, on the project's instance."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from vectorize_pipelines.cli.assessments import report_assessments
from vectorize_pipelines.cli.reporting import EXIT_INTERRUPTED, report
from vectorize_pipelines.cli.running import execute_until_interrupted, large_imports
from vectorize_pipelines.cli.showing import run_log, show_failures, skipped_in_words
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.kafka.clients import require_servers
from vectorize_pipelines.kafka.followed import FOLLOWED_NAMES, followed_topic
from vectorize_pipelines.state.home import enter_home, use_dagster_home

if TYPE_CHECKING:
    import dagster as dg

    from vectorize_pipelines.pipeline.stream import EmbeddingStream

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
@click.argument("topic", type=click.Choice(FOLLOWED_NAMES))
@click.option("--once", is_flag=True, help="End when nothing waits any more, instead of following the topic.")
@click.option(
    "--shard", default="0/1", show_default=True, metavar="I/N", help="Part of the topic's partitions that is read."
)
@click.option("--force", is_flag=True, help="Of requests: encode also what has not changed.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(topic: str, once: bool, shard: str, force: bool, as_json: bool) -> int:
    """Deal with the messages that wait in Kafka, and with those that come while it runs.

    TOPIC is text, image or document for requests, which are embedded; detections, whose groups become tasks; or
    assessments: tasks, which a model judges. It is one run on the project's Dagster instance, as the sensors launch
    them, and ends as these do: when nothing has come for kafka.drain.idle_seconds, after kafka.drain.max_seconds, or,
    without --once, with the UTC day. An earlier run of the same part of the topic is told to end first. Ctrl-C ends it
    once what is in hand is finished; the rest waits for the next run.
    """
    settings = enter_home()
    part = Shard.parse(shard)
    require_servers(settings.kafka)
    use_dagster_home(settings)
    with large_imports():
        from vectorize_pipelines.jobs import STREAM_JOBS
        from vectorize_pipelines.runs.tags import drain_tags

    wiring = STREAM_JOBS[topic]
    config: dict[str, Any] = {"mode": "drain", "shard": str(part), "once": once}
    if topic in tuple(Modality):
        config["force"] = force
    tags = drain_tags(followed_topic(settings.kafka, topic), part)
    started = time.monotonic()
    with run_log(settings) as shown:
        result, interrupted = execute_until_interrupted(settings, wiring.job.name, wiring.asset, config, tags)
    about = {"shard": str(part), "seconds": round(time.monotonic() - started, 2)}
    if topic in tuple(Modality):
        code = _report_requests(result, shown.stream, {"modality": topic, **about}, as_json=as_json)
    else:
        code = report_assessments(result, wiring, about, as_json=as_json)
    return EXIT_INTERRUPTED if interrupted and result.success else code


def _report_requests(
    result: "dg.ExecuteInProcessResult", stream: "EmbeddingStream | None", about: Mapping[str, Any], *, as_json: bool
) -> int:
    found = {
        **about,
        **(dict.fromkeys(RUN_FIGURES, 0) if stream is None else stream.figures()),
        "lost_unread_offsets": [] if stream is None else list(stream.losses()),
    }
    return report(result, stream, found, _print, refused=("dead_letters",), as_json=as_json)


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
