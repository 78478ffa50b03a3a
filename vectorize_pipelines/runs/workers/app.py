"""The Celery app that the launcher sends runs by, and the workers take them with: dagster-celery's, on Redis.

A run's message holds nothing but its id. It is acknowledged when the run has ended, and a worker holds no other one
meanwhile, so that what waits can be taken by whoever is free. A message may come twice: from a worker that was lost, or
because Redis forgot that it was acknowledged. That does no harm, since a run is executed by whoever holds its lease and
only while it has not begun (`execution.execute`).
"""

import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vectorize_pipelines.core.extras import missing
from vectorize_pipelines.core.worker_queues import GENERAL, KEY_PREFIX
from vectorize_pipelines.errors import MissingExtraError, RedisUnavailableError, SettingsError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.redis_connection import TIMEOUT_SECONDS, redis_address

if TYPE_CHECKING:
    from celery import Celery

TASK = "vectorize.execute_run"
#: After so long Redis gives a message to another worker whose first one has not acknowledged it: longer than any run.
VISIBILITY_SECONDS = 7 * 86_400
#: The start of a process imports the definitions, which takes long on a busy machine.
_START_SECONDS = 300.0
#: How long a launch waits for a Redis that is just started again.
_RETRIES = {"max_retries": 20, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 2.0}


def check_available(settings: Settings) -> None:
    """Raise `SettingsError` or `MissingExtraError` where something that workers need is not configured or installed."""
    if settings.redis.url is None:
        raise SettingsError(
            "workers take their runs from Redis, and redis.url (VECTORIZE_REDIS__URL) is not set: name the server, as "
            "redis://host:6379/0"
        )
    redis_address(settings)
    lacking = missing("workers on several hosts:", "celery", "redis")
    if lacking is not None:
        raise MissingExtraError(lacking)


def app_arguments(settings: Settings) -> dict[str, Any]:
    """Return what dagster-celery makes the app of: `broker`, `backend`, `config_source` and so on.

    There is no backend of results: what became of a run, Dagster's database says.
    """
    url = "" if settings.redis.url is None else settings.redis.url.get_secret_value()
    config: dict[str, Any] = {
        "worker_prefetch_multiplier": 1,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_ignore_result": True,
        "task_send_sent_event": False,
        "broker_transport_options": {
            "visibility_timeout": VISIBILITY_SECONDS,
            "global_keyprefix": KEY_PREFIX,
            "priority_steps": [0],  # Dagster's own queue decides who is first
            "socket_connect_timeout": TIMEOUT_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": round(TIMEOUT_SECONDS),
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_proc_alive_timeout": _START_SECONDS,
    }
    if url.startswith("rediss:"):
        config["broker_use_ssl"] = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    return {
        "broker": _broker(url),
        "backend": None,
        "include": [],
        "config_source": config,
        "default_queue": GENERAL,
    }


def _broker(url: str) -> str:
    """Return an address of Redis as Celery takes it, which has another form for sockets."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    user = f"{parts.netloc}" if parts.netloc else ""
    database = dict(each.partition("=")[::2] for each in parts.query.split("&")).get("db", "0")
    return f"redis+socket://{user}{parts.path}?virtual_host={database}"


def celery_app(settings: Settings) -> "Celery":
    """Return the app as a worker uses it."""
    from dagster_celery.make_app import make_app

    arguments = app_arguments(settings)
    queue = arguments.pop("default_queue")
    return make_app({**arguments, "task_default_queue": queue})  # type: ignore[no-untyped-call]


def send(app: "Celery", settings: Settings, run_id: str, queue: str) -> None:
    """Put a run into a queue. Raises `RedisUnavailableError`."""
    from kombu.exceptions import OperationalError

    try:
        app.send_task(
            TASK,
            args=[run_id],
            task_id=run_id,
            queue=queue,
            priority=0,
            retry=True,
            retry_policy=_RETRIES,
            ignore_result=True,
        )
    except OperationalError:
        raise RedisUnavailableError(
            f"Redis at {redis_address(settings)} did not take run {run_id} for the queue {queue}: start it, and launch "
            "the run again"
        ) from None
