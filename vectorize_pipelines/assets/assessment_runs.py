"""Runs of `assessment_tasks` and `risk_assessments`: how one begins to drain, and the figures of one as a whole."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import dagster as dg

from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.pipeline.assessments.drain_request import DrainRequest
from vectorize_pipelines.runs.config import FollowConfig
from vectorize_pipelines.runs.drain import DrainRun
from vectorize_pipelines.settings import Settings


def take_over(
    context: dg.AssetExecutionContext, config: FollowConfig, settings: Settings, followed: str
) -> DrainRequest:
    """Return what the run drains, once earlier runs of its part have ended. Raises as `DrainRun.take_over`."""
    shard = Shard.parse(config.shard)
    beside = DrainRun(context.instance, context.run.run_id, followed_topic(settings.kafka, followed), shard)
    beside.take_over()
    return DrainRequest(
        context.run.run_id,
        shard,
        once=config.once,
        idle_seconds=config.idle_seconds,
        max_seconds=config.max_seconds,
        should_stop=beside.reason_to_end,
    )


class FollowingRun(Protocol):
    """A run over a topic of cameras."""

    def figures(self) -> Mapping[str, int | float]:
        """Return figures of the run as a whole."""

    def losses(self) -> Sequence[str]:
        """Return the places of what the broker had deleted before it was read, for people."""


def run_metadata(run: FollowingRun) -> dict[str, Any]:
    """Return what the metadata of a run say of it as a whole."""
    losses = run.losses()
    return {**run.figures(), **({"lost_unread_offsets": "\n".join(losses)} if losses else {})}
