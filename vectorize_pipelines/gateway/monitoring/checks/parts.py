"""The health check of each part: calls that block, and the query for Dagster's web server.

Called by `checks.report`. Clients and stores are kept from one time to the next, and made again after a failure: one
that has lost its server may take long to look for it again.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.errors import KafkaError, StoreError
from vectorize_pipelines.gateway.dagster.client import DagsterClient
from vectorize_pipelines.kafka.clients import admin, kafka_errors
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.kafka.lag import offset_reader, partition_lags
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.settings import KafkaSettings, Settings, StoreSettings
from vectorize_pipelines.state.redis_connection import ping_redis
from vectorize_pipelines.state.request_totals import RequestTotals
from vectorize_pipelines.stores import open_store

if TYPE_CHECKING:
    from confluent_kafka import Consumer
    from confluent_kafka.admin import AdminClient

    from vectorize_pipelines.stores.base import VectorStore

#: Limit for a request to the brokers or to a store server: it is to fail before nobody waits any more, and say why.
REQUEST_SECONDS = 1.5
#: The daemon says twice a minute that it runs. Dagster itself calls it healthy for half an hour after it has ended.
DAEMON_SECONDS = 90.0

_DAGSTER = """
query Health {
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy lastHeartbeatTime } } }
  runsOrError(filter: {statuses: [STARTING, STARTED, CANCELING]}) {
    __typename
    ... on Runs { count }
    ... on PythonError { message }
  }
}
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one health check.

    connected  it has answered
    complete   it also has what is needed of it
    detail     what is wrong, or worth knowing
    number     what it was asked to count; None: nothing, or it could not be counted
    """

    connected: bool
    complete: bool
    detail: str | None = None
    number: int | None = None


class KafkaCheck:
    """The brokers, and the messages that wait in the topics of requests. Called by one thread at a time."""

    def __init__(self, settings: KafkaSettings) -> None:
        seconds = min(settings.request_seconds, REQUEST_SECONDS)
        self._settings = settings.model_copy(update={"request_seconds": seconds})
        self._names = TopicNames(settings.topic_prefix)
        self._clients: tuple[AdminClient, Consumer] | None = None

    def __call__(self) -> Finding:
        """Ask. Raises `SettingsError` where the client refuses the settings."""
        connected = False
        try:
            client, reader = self._clients = self._clients or (admin(self._settings), offset_reader(self._settings))
            with kafka_errors(self._settings, "asking the brokers", client):
                client.list_topics(self._names.results, timeout=self._settings.request_seconds)
            connected = True
            topics = [followed_topic(self._settings, modality) for modality in Modality]
            lags = [lag for each in topics for lag in partition_lags(self._settings, each, client, reader)]
        except KafkaError as error:
            self._clients = None
            return Finding(connected=connected, complete=False, detail=str(error))
        return Finding(connected=True, complete=True, number=sum(each.lag for each in lags))


class StoreCheck:
    """The vector store, on a connection that does not wait long nor try again. Called by one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self._open = partial(open_store, hasty(settings.store), settings.home)
        self._store: VectorStore | None = None

    def __call__(self) -> Finding:
        """Ask. Raises `SettingsError` and `StoreError`."""
        try:
            self._store = self._store or self._open()
            self._store.collections()
        except StoreError:
            store, self._store = self._store, None
            if store is not None:
                store.close()
            raise
        return Finding(connected=True, complete=True)


class DatabaseCheck:
    """The database of requests; `counted`: and the requests in it that wait."""

    def __init__(self, totals: RequestTotals, *, counted: bool) -> None:
        self._totals = totals
        self._counted = counted

    def __call__(self) -> Finding:
        """Ask. Raises `LedgerError`."""
        if self._counted:
            return Finding(connected=True, complete=True, number=self._totals.waiting())
        self._totals.ping()
        return Finding(connected=True, complete=True)


class RedisCheck:
    """The Redis server, on a connection of its own each time. Called by one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self) -> Finding:
        """Ask. Raises `SettingsError`, `MissingExtraError` and `RedisUnavailableError`."""
        ping_redis(self._settings, REQUEST_SECONDS)
        return Finding(connected=True, complete=True)


@dataclass(frozen=True, slots=True)
class DagsterFinding:
    """The answer of Dagster's web server: the daemon (None: none has ever run), and how many runs are in progress."""

    daemon_healthy: bool | None
    runs: int | None
    detail: str | None


async def ask_dagster(dagster: DagsterClient) -> DagsterFinding:
    """Ask the web server. Raises `DagsterUnavailableError`."""
    data = await dagster.query(_DAGSTER)
    healthy, detail = daemon_health(data["instance"]["daemonHealth"]["allDaemonStatuses"], time.time())
    runs = data["runsOrError"]
    return DagsterFinding(healthy, runs.get("count"), detail or runs.get("message"))


def daemon_health(statuses: Iterable[Mapping[str, Any]], now: float) -> tuple[bool | None, str | None]:
    """Return whether the daemon runs, by what Dagster knows of its parts, and what is wrong; None: none ever ran."""
    required = [status for status in statuses if status["required"]]
    heard = [status["lastHeartbeatTime"] for status in required if status["lastHeartbeatTime"] is not None]
    if not heard:
        return None, "no daemon has run yet: queued runs and sensors wait for one"
    silence = now - max(heard)
    if silence > DAEMON_SECONDS:
        return False, f"the daemon has not been heard of for {silence:.0f} s: queued runs and sensors wait for it"
    ill = sorted(status["daemonType"] for status in required if not status["healthy"])
    return not ill, f"Dagster finds parts of the daemon unhealthy: {', '.join(ill)}" if ill else None


def hasty(settings: StoreSettings) -> StoreSettings:
    """Return the settings of a store that is asked once, and for less long than anybody waits."""
    weaviate = {"connect_seconds": REQUEST_SECONDS, "query_seconds": REQUEST_SECONDS, "retries": 0}
    qdrant = {"timeout_seconds": REQUEST_SECONDS, "retries": 0}
    return settings.model_copy(
        update={
            "weaviate": settings.weaviate.model_copy(update=weaviate),
            "qdrant": settings.qdrant.model_copy(update=qdrant),
        }
    )
