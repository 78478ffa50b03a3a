"""The run config of assets from Kafka."""

from typing import Literal

import dagster as dg
from pydantic import Field


class FollowConfig(dg.Config):
    """The config of a run of an asset from Kafka; what is left empty is as the settings say."""

    mode: Literal["replay", "drain"] = Field(
        "replay", description="replay: the messages of the run's days; drain: those that wait, and those that come"
    )
    shard: str = Field("0/1", description="drain: the part of the topic's partitions that is this run's, as in 0/4")
    once: bool = Field(False, description="drain: end when nothing waits any more, whatever the day")
    max_seconds: float | None = Field(None, gt=0, description="drain: end after so long; null: kafka.drain.max_seconds")
    idle_seconds: float | None = Field(
        None, ge=0, description="drain: end when nothing has come for so long; null: kafka.drain.idle_seconds"
    )
