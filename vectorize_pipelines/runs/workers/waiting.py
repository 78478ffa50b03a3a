"""Runs that wait for a worker, and the messages in Redis by which they do."""

from contextlib import closing
from datetime import UTC, datetime, timedelta

import dagster as dg

from vectorize_pipelines.runs.held import PREFIX
from vectorize_pipelines.runs.workers.app import celery_app, send
from vectorize_pipelines.runs.workers.routing import queue_of
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.leases import is_held
from vectorize_pipelines.state.queue_lengths import queue_lengths

#: A run may be between its queue and its first line for so long.
BEGINNING_SECONDS = 60.0


def send_again(instance: dg.DagsterInstance, settings: Settings, age_seconds: float = BEGINNING_SECONDS) -> list[str]:
    """Send launched runs again that nobody executes and no message is left of; return their ids.

    Redis may have been started without what it held, and a worker be killed just after it has taken a message. One that
    is sent twice does no harm: whoever comes second finds that the run has begun.
    Raises `RedisUnavailableError` and `LedgerError`.
    """
    launched = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.STARTING],
        updated_before=datetime.now(UTC) - timedelta(seconds=age_seconds),
    )
    runs = [(run, queue_of(run)) for run in instance.get_runs(launched)]
    if not runs:
        return []
    waiting = queue_lengths(settings, {queue for _, queue in runs})
    app = celery_app(settings)
    sent = []
    with closing(Database.open(settings)) as database:
        for run, queue in runs:
            if not waiting[queue] and not is_held(database, PREFIX + run.run_id):
                send(app, settings, run.run_id, queue)
                sent.append(run.run_id)
    return sent
