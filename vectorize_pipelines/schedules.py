"""The schedules: what happens by the clock."""

from contextlib import closing
from datetime import UTC, datetime, timedelta

import dagster as dg

from vectorize_pipelines.assets.reembedding import drop_old_generations
from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.jobs import check_indexes, maintain_collections, report_camera_risk
from vectorize_pipelines.runs.retention import deliver_callbacks, retention
from vectorize_pipelines.runs.tags import UNFINISHED
from vectorize_pipelines.sensors.files import CORPUS, GALLERY, WatchedFolder
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.sources.files import normalised_root
from vectorize_pipelines.state.assessment_totals import AssessmentTotals
from vectorize_pipelines.state.callbacks import CallbackOutbox
from vectorize_pipelines.state.manifest import open_manifest


def schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """Return all schedules."""
    return [
        reconcile_schedule(CORPUS, settings),
        reconcile_schedule(GALLERY, settings),
        drop_generations,
        maintain_collections_daily,
        check_indexes_daily,
        clean_up_schedule(settings),
        waiting_callbacks_schedule(settings),
        camera_risk_schedule(settings),
    ]


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
    description="Measures once a day, in every collection, how many of the nearest rows the searches find.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
drop_generations = dg.ScheduleDefinition(
    name="drop_old_generations",
    job=drop_old_generations,
    cron_schedule="30 3 * * *",
    execution_timezone="UTC",
    description="Drops the generations that were kept after a switch, once their time is over.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)


def reconcile_schedule(folder: WatchedFolder, settings: Settings) -> dg.ScheduleDefinition:
    """Return the schedule that holds the manifest of a folder against folder and store."""

    @dg.schedule(
        name=f"reconcile_{folder.name}",
        job=folder.job,
        cron_schedule="0 3 * * *",
        execution_timezone="UTC",
        description="Holds the manifest against store and folder once a day, deletions included.",
        default_status=_running_where(on=folder.watched(settings)),
    )
    def reconcile(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
        """Drain runs that trust nothing: one, or one a shard; none that another one under way would have refused."""
        settings = load_settings()
        section = folder.section(settings)
        counts = {shard.count for shard in folder.shards_under_way(context.instance, section.collection)}
        if counts:
            count = counts.pop() if len(counts) == 1 else 1  # the whole waits for any
            return [folder.drain_request(settings, shard, reconcile=True) for shard in Shard.layout(count)]
        files = 0
        if section.files_per_run is not None and section.path is not None:
            with closing(open_manifest(settings, section.collection)) as manifest:
                files = manifest.count_below(normalised_root(section.path))
        shards = folder.shards_of(settings, files)
        return [folder.drain_request(settings, shard, reconcile=True) for shard in shards]

    return reconcile


def clean_up_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Return the schedule of the daily clean-up."""
    return dg.ScheduleDefinition(
        name="retention",
        job=retention,
        cron_schedule="30 3 * * *",
        execution_timezone="UTC",
        description="Removes once a day what the settings `ledger.retention_days` and `retention.…` no longer keep.",
        default_status=_running_where(on=_has_kafka(settings) or settings.retention.runs_days is not None),
    )


def waiting_callbacks_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Return the schedule that has callbacks posted which runs have left over."""

    @dg.schedule(
        name="waiting_callbacks",
        job=deliver_callbacks,
        cron_schedule="* * * * *",
        execution_timezone="UTC",
        description="Posts callbacks that runs have left over, or that are to be tried again; nothing where none is "
        "due.",
        default_status=_running_where(on=_has_kafka(settings)),
    )
    def waiting_callbacks(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        """A run, unless the one before is still at it: it takes these too."""
        settings = load_settings()
        if not _has_kafka(settings):
            return dg.SkipReason(
                "Kafka is not configured (VECTORIZE_KAFKA__BOOTSTRAP_SERVERS), so there are no callbacks."
            )
        with closing(CallbackOutbox.open(settings)) as outbox:
            due = outbox.due()
        if not due:
            return dg.SkipReason("No callback is due.")
        under_way = dg.RunsFilter(job_name=deliver_callbacks.name, statuses=UNFINISHED)
        if context.instance.get_runs_count(under_way):
            return dg.SkipReason(f"{due} callbacks are due, and a run that delivers them is under way.")
        return dg.RunRequest()

    return waiting_callbacks


def camera_risk_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Return the schedule of the report on cameras."""

    @dg.schedule(
        name="camera_risk_hourly",
        job=report_camera_risk,
        cron_schedule="5 * * * *",
        execution_timezone="UTC",
        description="Reports every hour on what was assessed, by camera; nothing where nothing was.",
        default_status=_running_where(on=_has_kafka(settings)),
    )
    def camera_risk_hourly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        """A run over the day that there was an hour ago: the first one of a day completes the day before."""
        day = (datetime.now(UTC) - timedelta(hours=1)).date().isoformat()
        with closing(AssessmentTotals.open(load_settings())) as totals:
            outcomes = totals.outcomes([day])
        if not (outcomes.completed or outcomes.failed or outcomes.expired):
            return dg.SkipReason(f"Nothing was assessed on {day}.")
        return dg.RunRequest(partition_key=day)

    return camera_risk_hourly


def _has_kafka(settings: Settings) -> bool:
    return settings.kafka.bootstrap_servers is not None


def _running_where(*, on: bool) -> dg.DefaultScheduleStatus:
    return dg.DefaultScheduleStatus.RUNNING if on else dg.DefaultScheduleStatus.STOPPED
