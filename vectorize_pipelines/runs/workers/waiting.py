"""Runs that wait for a worker, and the messages in Redis by which they do."""

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta

import dagster as dg

from vectorize_pipelines.core.worker_queues import queue_key
from vectorize_pipelines.runs.held import PREFIX
from vectorize_pipelines.runs.workers.app import celery_app, send
from vectorize_pipelines.runs.workers.routing import queue_of
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.leases import is_held
from vectorize_pipelines.state.redis_connection import open_redis, redis_errors

#: A run may be between its queue and its first line for so long.
BEGINNING_SECONDS = 10.0
#: So many messages of a queue are read at a time.
_PAGE = 1000


def send_again(instance: dg.DagsterInstance, settings: Settings, age_seconds: float = BEGINNING_SECONDS) -> list[str]:
    """Send launched runs again that nobody executes and no message is left of; return their ids.

    Redis may have been started without what it held, and a worker be killed just after it has taken a message. One that
    is sent twice, as while it is just taken, does no harm: whoever comes second finds that the run has begun.
    Raises `RedisUnavailableError` and `LedgerError`.
    """
    launched = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.STARTING],
        updated_before=datetime.now(UTC) - timedelta(seconds=age_seconds),
    )
    runs = [(run, queue_of(run)) for run in instance.get_runs(launched)]
    if not runs:
        return []
    waiting = {queue: _waiting_in(settings, queue) for queue in {queue for _, queue in runs}}
    app = celery_app(settings)
    sent = []
    with closing(Database.open(settings)) as database:
        for run, queue in runs:
            if run.run_id not in waiting[queue] and not is_held(database, PREFIX + run.run_id):
                send(app, settings, run.run_id, queue)
                sent.append(run.run_id)
    return sent


def _waiting_in(settings: Settings, queue: str) -> set[str]:
    """Return the ids of the runs whose messages are in a queue; each is the id of a task.

    Messages come in at the list's head: while it is read from there, none of them gets past what is read.
    """
    found: set[str] = set()
    with closing(open_redis(settings)) as client, redis_errors(settings):
        start = 0
        while messages := client.lrange(queue_key(queue), start, start + _PAGE - 1):
            found.update(json.loads(message)["headers"]["id"] for message in messages)
            start += _PAGE
    return found
