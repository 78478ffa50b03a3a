"""The schedules: what happens by the clock."""

import dagster as dg

from vectorize_pipelines.assets.reembedding import drop_old_generations
from vectorize_pipelines.jobs import check_indexes, maintain_collections
from vectorize_pipelines.sensors.new_files import CORPUS, GALLERY, WatchedFolder


def _reconciling(folder: WatchedFolder) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"reconcile_{folder.name}",
        job=folder.job,
        cron_schedule="0 3 * * *",
        execution_timezone="UTC",
        description="Holds the manifest against store and folder once a day, deletions included.",
        default_status=dg.DefaultScheduleStatus.RUNNING if folder.watched() else dg.DefaultScheduleStatus.STOPPED,
    )
    def reconcile(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        """A drain run that trusts nothing."""
        return folder.drain_request(reconcile=True)

    return reconcile


maintain_collections_daily = dg.ScheduleDefinition(
    name="maintain_collections_daily",
    job=maintain_collections,
    cron_schedule="0 4 * * *",
    execution_timezone="UTC",
    description="Compacts every collection and builds and tunes its indexes once a day.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
check_indexes_daily = dg.ScheduleDefinition(
    name="check_indexes_daily",
    job=check_indexes,
    cron_schedule="30 4 * * *",
    execution_timezone="UTC",
    description="Measures once a day how many of the nearest rows the searches find.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
reconcile_corpus = _reconciling(CORPUS)
reconcile_gallery = _reconciling(GALLERY)


drop_generations = dg.ScheduleDefinition(
    name="drop_old_generations",
    job=drop_old_generations,
    cron_schedule="30 3 * * *",
    execution_timezone="UTC",
    description="Drops the generations that were kept after a switch, once their time is over.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
