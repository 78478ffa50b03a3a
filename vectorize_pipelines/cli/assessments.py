"""What became of a run over detections or assessments, told by the command that it was a run of."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from vectorize_pipelines.cli.reporting import report_figures
from vectorize_pipelines.cli.showing import show_failures
from vectorize_pipelines.kafka.followed import ASSESSMENTS, DETECTIONS

if TYPE_CHECKING:
    import dagster as dg

    from vectorize_pipelines.jobs import StreamJob

#: Name of a followed topic -> the counts of a run that are always told, added up over its days.
COUNTS = {
    DETECTIONS: ("messages", "tasks", "left_out", "dead_letters", "lost_unread", "lag"),
    ASSESSMENTS: ("messages", "completed", "failed", "expired", "cached", "duplicates", "lost_unread", "lag"),
}
#: The count of messages that went to the dead letters.
REFUSED = {DETECTIONS: "dead_letters", ASSESSMENTS: "failed"}


def report_assessments(
    result: "dg.ExecuteInProcessResult", wiring: "StreamJob", about: Mapping[str, Any], *, as_json: bool
) -> int:
    """Tell what became of a run of `wiring`'s asset, by the metadata of its partitions, and return the exit code."""
    days: dict[str, dict[str, Any]] = {}
    failures: list[Mapping[str, Any]] = []
    for each in result.asset_materializations_for_node(wiring.asset):
        values = {name: entry.value for name, entry in each.metadata.items()}
        days[each.partition or ""] = {n: v for n, v in values.items() if isinstance(v, int | float | str)}
        failures += [record.data for record in getattr(each.metadata.get("failures"), "records", ())]
    counts: Counter[str] = Counter()
    for figures in days.values():
        counts.update({name: figures.get(name, 0) for name in COUNTS[wiring.name]})
    found = {
        "topic": wiring.name,
        **about,
        **{name: counts[name] for name in COUNTS[wiring.name]},
        "by_day": days,
        "failures": failures,
    }
    return report_figures(result, found, _print if days else None, refused=(REFUSED[wiring.name],), as_json=as_json)


def _print(outcome: Mapping[str, Any]) -> None:
    counts = ", ".join(f"{outcome[name]} {name.replace('_', ' ')}" for name in COUNTS[outcome["topic"]])
    click.echo(f"{outcome['topic']}: {counts} ({outcome['seconds']} s, run {outcome['run_id'][:8]})")
    show_failures(outcome["failures"], "the first hundred of a day")
