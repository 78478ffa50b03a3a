"""The schedules: what happens by the clock."""

import dagster as dg

from vectorize_pipelines.jobs import embed_corpus
from vectorize_pipelines.sensors.new_files import drain_request, watched


@dg.schedule(
    job=embed_corpus,
    cron_schedule="0 3 * * *",
    execution_timezone="UTC",
    description="Holds the manifest against store and folder once a day, deletions included.",
    default_status=dg.DefaultScheduleStatus.RUNNING if watched() else dg.DefaultScheduleStatus.STOPPED,
)
def reconcile_corpus(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """A drain run that trusts nothing."""
    return drain_request(reconcile=True)
