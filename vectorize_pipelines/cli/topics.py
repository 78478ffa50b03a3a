"""`vectorize topics`: making all topics, and holding them against `config/kafka.yaml`."""

import json
from dataclasses import asdict

import click

from vectorize_pipelines.cli.tables import print_table
from vectorize_pipelines.settings import KafkaSettings
from vectorize_pipelines.state.home import enter_home

EXIT_DIFFERENT = 1


@click.group()
def command() -> None:
    """Make and check the Kafka topics, as config/kafka.yaml says."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print what was made, and the topics, as JSON.")
def create(as_json: bool) -> None:
    """Make the topics that are missing. What is there is left as it is; `check` says what differs."""
    from vectorize_pipelines.kafka.topics import Family, create_topics, describe_topics

    settings = enter_home().kafka
    created = create_topics(settings, tuple(Family))
    if as_json:
        topics = [asdict(state) for state in describe_topics(settings)]
        click.echo(json.dumps({"created": created, "topics": topics}, ensure_ascii=False, indent=2))
        return
    for name in created:
        click.echo(f"made {name}")
    if not created:
        click.echo("all topics are there", err=True)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print the problems and warnings as JSON.")
def check(as_json: bool) -> int:
    """Hold the topics against config/kafka.yaml. Exits with 1 where one is missing or different."""
    from vectorize_pipelines.kafka.topics import check_offset_retention, check_topics

    settings = enter_home().kafka
    problems, warnings = check_topics(settings), check_offset_retention(settings)
    if as_json:
        found = {"ok": not problems, "problems": problems, "warnings": warnings}
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        for problem in problems:
            click.echo(problem)
        for warning in warnings:
            click.echo(f"warning: {warning}")
        if not problems:
            click.echo("all topics are as they should be", err=True)
    return EXIT_DIFFERENT if problems else 0


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the topics as JSON.")
def list_topics(as_json: bool) -> None:
    """List the topics with partitions, replicas and state."""
    from vectorize_pipelines.kafka.topics import describe_topics

    settings: KafkaSettings = enter_home().kafka
    states = describe_topics(settings)
    if as_json:
        click.echo(json.dumps([asdict(state) for state in states], ensure_ascii=False, indent=2))
        return
    rows = [
        (
            state.name,
            state.status,
            f"{state.partitions} partitions" if state.partitions else "",
            f"{state.replication} replicas" if state.partitions else "",
        )
        for state in states
    ]
    print_table(("topic", "state", "partitions", "replicas"), rows, right=("partitions", "replicas"))
