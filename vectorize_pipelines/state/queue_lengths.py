"""The number of runs that wait for a worker, by queue. Used by the HTTP server, for Prometheus."""

from collections.abc import Iterable

from vectorize_pipelines.core.worker_queues import queue_key
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.redis_connection import open_redis, redis_errors


def queue_lengths(settings: Settings, queues: Iterable[str]) -> dict[str, int]:
    """Return how many runs wait in each of these queues; those that a worker has taken do not.

    Raises `SettingsError`, `MissingExtraError` and `RedisUnavailableError`.
    """
    client = open_redis(settings)
    try:
        with redis_errors(settings):
            return {queue: int(client.llen(queue_key(queue))) for queue in queues}
    finally:
        client.close()
