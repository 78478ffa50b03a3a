"""The report of whether everything that is configured is there. Read by `routes.health` and `routes.metrics`."""

import asyncio
import logging
import time
from collections.abc import Awaitable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from types import TracebackType
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, Field

from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.gateway.dagster.client import DagsterClient
from vectorize_pipelines.gateway.monitoring.checks.parts import (
    DatabaseCheck,
    Finding,
    KafkaCheck,
    RedisCheck,
    StoreCheck,
    ask_dagster,
)
from vectorize_pipelines.gateway.monitoring.checks.question import Question
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import database_url
from vectorize_pipelines.state.heartbeats import Heartbeat
from vectorize_pipelines.state.request_totals import RequestTotals

logger = logging.getLogger(__name__)

#: So long a part may take to answer.
CHECK_SECONDS = 2.0
#: Who asks gets a report that was begun at most so long before.
FRESH_SECONDS = 1.0

Answer = TypeVar("Answer")


class PartHealth(BaseModel):
    """One part. `connected` is null where it is not configured; `detail` says what is wrong, or worth knowing."""

    connected: bool | None
    detail: str | None = None


class KindHealth(PartHealth):
    """A part of which there are several kinds."""

    kind: str


class DagsterHealth(PartHealth):
    """Dagster's web server, and what it knows of the daemon: `daemon_healthy` is null where none has ever run."""

    daemon_healthy: bool | None = None


class HealthModel(BaseModel):
    """The report: `healthy`, unless something that is configured is away."""

    status: Literal["healthy", "unhealthy"]
    timestamp: datetime
    kafka_connected: bool | None = Field(description="null: no cluster is configured")
    weaviate_connected: bool | None = Field(description="null: another store is configured")
    redis_connected: bool | None = Field(description="null: no Redis is configured")
    active_workers: int | None = Field(
        description="workers that live, where runs wait for workers, else runs in progress; null: this cannot be known "
        "at the moment"
    )
    queue_size: int | None = Field(description="requests that wait; null: this cannot be known at the moment")
    kafka: PartHealth
    store: KindHealth
    database: KindHealth
    redis: PartHealth
    dagster: DagsterHealth
    version: str


_NOT_CONFIGURED = PartHealth(connected=None, detail="not configured")


class HealthChecks:
    """The checks of all parts, side by side. An async context manager.

    Any number may ask at once: the parts are asked once for all of them.
    """

    def __init__(
        self,
        settings: Settings,
        totals: RequestTotals,
        dagster: DagsterClient,
        workers: Question[list[Heartbeat]],
    ) -> None:
        """`workers` asks for those that live; whoever made it closes it."""
        self._settings = settings
        self._workers = workers if settings.run_launcher == "celery" else None
        self._dagster = dagster
        self._database_kind = database_url(settings).get_backend_name()
        self._has_kafka = settings.kafka.bootstrap_servers is not None
        self._has_redis = settings.redis.url is not None
        self._kafka = Question("kafka", KafkaCheck(settings.kafka))
        self._store = Question("store", StoreCheck(settings))
        self._database = Question("database", DatabaseCheck(totals, counted=not self._has_kafka))
        self._redis = Question("redis", RedisCheck(settings))
        self._check: asyncio.Task[HealthModel] | None = None
        self._began = 0.0

    async def report(self) -> HealthModel:
        """Return how everything is, within a little more than `CHECK_SECONDS`."""
        if self._check is None or (self._check.done() and time.monotonic() - self._began > FRESH_SECONDS):
            self._began = time.monotonic()
            self._check = asyncio.create_task(self._ask_all(), name="health")
        return await asyncio.shield(self._check)  # whoever goes away does not end it for the others

    async def __aenter__(self) -> Self:
        self._store.put()  # to open it takes a second or two, and whoever asks first would not wait for it
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._check is not None:
            self._check.cancel()
            with suppress(asyncio.CancelledError):
                await self._check
        for question in (self._kafka, self._store, self._database, self._redis):
            question.close()

    async def _ask_all(self) -> HealthModel:
        kafka, store, database, redis, (dagster, runs), workers = await asyncio.gather(
            _ask_if(self._has_kafka, self._kafka),
            _ask(self._store),
            _ask(self._database),
            _ask_if(self._has_redis, self._redis),
            self._ask_dagster(),
            self._count_workers(),
        )
        complete = all(each.complete for each in (kafka, store, database, redis) if each is not None)
        # A daemon that has never run is not part of this installation.
        well = complete and runs is not None and dagster.daemon_healthy is not False
        kind = self._settings.store.kind
        return HealthModel(
            status="healthy" if well else "unhealthy",
            timestamp=datetime.now(UTC),
            kafka_connected=None if kafka is None else kafka.connected,
            weaviate_connected=store.connected if kind == "weaviate" else None,
            redis_connected=None if redis is None else redis.connected,
            active_workers=runs if self._workers is None else workers,
            queue_size=(database if kafka is None else kafka).number,
            kafka=_NOT_CONFIGURED if kafka is None else PartHealth(connected=kafka.connected, detail=kafka.detail),
            store=KindHealth(kind=kind, connected=store.connected, detail=store.detail),
            database=KindHealth(kind=self._database_kind, connected=database.connected, detail=database.detail),
            redis=_NOT_CONFIGURED if redis is None else PartHealth(connected=redis.connected, detail=redis.detail),
            dagster=dagster,
            version=version("vectorize-pipelines"),
        )

    async def _ask_dagster(self) -> tuple[DagsterHealth, int | None]:
        """The web server and, where it knows, the number of runs in progress."""
        found, problem = await _attempt(asyncio.wait_for(ask_dagster(self._dagster), CHECK_SECONDS))
        if found is None:
            return DagsterHealth(connected=False, detail=problem), None
        return DagsterHealth(connected=True, daemon_healthy=found.daemon_healthy, detail=found.detail), found.runs

    async def _count_workers(self) -> int | None:
        """The number of workers that live; None: nobody needs it, or Redis is away, of which its own check tells."""
        if self._workers is None:
            return None
        found, _ = await _attempt(self._workers.answer(CHECK_SECONDS))
        return None if found is None else len(found)


async def _ask_if(configured: bool, question: Question[Finding]) -> Finding | None:
    return await _ask(question) if configured else None


async def _ask(question: Question[Finding]) -> Finding:
    found, problem = await _attempt(question.answer(CHECK_SECONDS))
    return found or Finding(connected=False, complete=False, detail=problem)


async def _attempt(answer: Awaitable[Answer]) -> tuple[Answer | None, str | None]:
    """The answer, or why there is none: one part that fails, however it does, leaves the others' findings whole."""
    try:
        return await answer, None
    except TimeoutError:
        return None, f"no answer within {CHECK_SECONDS:g} s"
    except VectorizeError as error:
        return None, str(error)
    except Exception as error:
        logger.exception("a check of health failed")
        return None, f"the check failed: {type(error).__name__}; the server's log has the reason"
