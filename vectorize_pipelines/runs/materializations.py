"""Materializations of a run without an IO manager, with metadata for each of its days."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from vectorize_pipelines.partitions import days_in, window_of


def report_days(
    context: dg.AssetExecutionContext,
    days: Mapping[str, Mapping[str, Any]],
    empty: Mapping[str, Any],
    run: Mapping[str, Any],
) -> None:
    """Give every partition of the run its figures, and log a materialization for every other day that it touched.

    days   by partition
    empty  figures of a partition of which nothing was met
    run    figures of the run as a whole, which stand once, with its last partition
    """
    window = days_in(window_of(context.partition_key_range))
    for day in window:
        metadata = {**days.get(day, empty), **(run if day == window[-1] else {})}
        context.add_asset_metadata(metadata, partition_key=day)
    for day in sorted(days.keys() - set(window)):
        context.log_event(dg.AssetMaterialization(context.asset_key, partition=day, metadata=dict(days[day])))
