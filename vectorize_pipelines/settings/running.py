"""Settings of running: partitions, the flow of items, and what is kept from run to run."""

from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from vectorize_pipelines.core.worker_queues import QUEUES
from vectorize_pipelines.settings.base import AbsolutePath, Names, Section


class RedisSettings(Section):
    """Shared state, where SQLite files are not enough."""

    url: SecretStr | None = Field(None, description="redis://host:6379/0")


def _in_the_past(day: date) -> date:
    if day > datetime.now(UTC).date():
        raise ValueError(f"{day} lies in the future; give the day of the oldest file or message")
    return day


class PartitionSettings(Section):
    """The daily partitions."""

    start: Annotated[date, AfterValidator(_in_the_past)] = Field(
        date(2020, 1, 1), description="first day; what is older belongs to it too"
    )


def _on_or_off(value: Any) -> Any:
    """YAML reads a bare `on` or `off` as true or false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class CacheSettings(Section):
    """Vectors kept by model and content, so that the same content is not encoded again."""

    enabled: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = Field(
        "auto", description="auto: a run leaves the embedding cache alone once it costs more than it saves"
    )
    max_bytes: int = Field(
        2**30,
        ge=2**20,
        description="size of the file, where what was used longest ago goes first; of a Redis that evicts nothing by "
        "itself, the memory above which nothing more is put there",
    )
    unused_days: int = Field(30, ge=1, le=3650, description="in Redis: a vector goes so long after its last use")


class LedgerSettings(Section):
    """What became of each request, and which message each source's rows come from."""

    url: SecretStr | None = Field(
        None, description="postgresql://… or sqlite:///…; null: the database that Dagster uses, or a file beside it"
    )
    retention_days: int = Field(
        30, ge=1, description="so long finished requests, callbacks and assessments are remembered"
    )


class CallbackSettings(Section):
    """Posting what became of a request to its `callback_url`."""

    secret: SecretStr | None = Field(None, description="signs every callback; null: they are not signed")
    attempts: int = Field(8, ge=1, description="a callback is given up after so many")
    timeout_seconds: float = Field(10.0, gt=0, description="limit for one attempt, in all")
    allow_private: bool = Field(False, description="private and loopback addresses may be posted to")


class RetentionSettings(Section):
    """What the daily clean-up removes, beside what `ledger.retention_days` says."""

    deletions_days: int | None = Field(
        None,
        ge=1,
        description="deletions by null messages are forgotten after so many days, which must be more than any topic "
        "keeps its messages; null: never",
    )
    runs_days: int | None = Field(
        None,
        ge=1,
        description="finished runs and their events are deleted after so many days, but for the latest of a partition; "
        "null: kept",
    )


class ReembeddingSettings(Section):
    """Changing the model of a collection."""

    keep_days: float = Field(
        7.0, ge=0, description="so long the old collection is kept up to date after a switch, then it is dropped"
    )
    least_recall: float = Field(
        0.95, ge=0, le=1, description="share of passages that must find themselves in the new collection"
    )


def _known_queues(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or not set(names) <= set(QUEUES):
        raise ValueError(f"names of queues belong here, separated by commas: {', '.join(QUEUES)}")
    return tuple(dict.fromkeys(names))


class WorkerSettings(Section):
    """The worker that `vectorize worker` starts on this host."""

    mode: Literal["distributed", "standalone"] = Field(
        "distributed",
        description="distributed: a worker of an installation on several hosts; standalone: web server, daemon and one "
        "worker on this host",
    )
    node_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="tells workers apart, also those of one host; null: `node_name` and the process's number",
    )
    queues: Annotated[Names, AfterValidator(_known_queues)] = Field(
        tuple(QUEUES), description="the worker takes runs from these queues only"
    )
    pool_size: int = Field(
        1, ge=1, le=64, description="processes, each of which executes one run at a time and keeps its models loaded"
    )
    max_concurrent_tasks: int | None = Field(
        None, ge=1, description="at most so many runs at the same time, where `pool_size` is larger; null: `pool_size`"
    )
    heartbeat_seconds: float = Field(
        5.0, ge=1, le=60, description="from one heartbeat, by which a worker is listed, to the next"
    )
    log_file: AbsolutePath | None = Field(None, description="the worker's log; null: stderr")

    @property
    def processes(self) -> int:
        """How many processes execute runs."""
        return min(self.pool_size, self.max_concurrent_tasks or self.pool_size)


class AlertSettings(Section):
    """The receiver of news about failed runs."""

    webhook_url: SecretStr | None = Field(None, description="a failed run is posted here as JSON")


class PipelineSettings(Section):
    """How items flow from source to store."""

    batch_items: int = Field(2048, ge=1, description="at most so many items are encoded and written together")
    queue_batches: int = Field(1, ge=1, description="batches that may wait between two stages")
    store_outage_seconds: float = Field(
        300.0, ge=0, description="how long a run waits for a store that is away; 0: it fails at once"
    )
    spill_bytes: int = Field(
        2**30, ge=0, description="batches that go to disk meanwhile; beyond, encoding waits; 0: it waits at once"
    )
