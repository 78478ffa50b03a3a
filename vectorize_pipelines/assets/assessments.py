"""`assessment_tasks`: the groups that cameras detect and that deserve it, as tasks for the model.

A run of it makes the tasks of its days again or, with `mode: drain`, takes the detections that wait and follows the
topic until it is idle. A sensor launches the latter (`sensors/assessments.py`). `risk_assessments` judges the tasks
(`assets/risk.py`).
"""

from typing import Any

import dagster as dg

from vectorize_pipelines.assets.assessment_runs import run_metadata, take_over
from vectorize_pipelines.assets.files import OWNERS, RETRIES
from vectorize_pipelines.jobs import STREAM_JOBS
from vectorize_pipelines.kafka.clients import require_servers
from vectorize_pipelines.kafka.followed import DETECTIONS
from vectorize_pipelines.messaging.versioned import VERSION
from vectorize_pipelines.partitions import daily_partitions, window_of
from vectorize_pipelines.pipeline.assessments.task_figures import DayFigures
from vectorize_pipelines.pipeline.assessments.task_run import TaskRun
from vectorize_pipelines.pipeline.assessments.task_runs import open_task_drain, open_task_replay
from vectorize_pipelines.resources.figures import failures_table
from vectorize_pipelines.runs.config import FollowConfig
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.runs.materializations import report_days
from vectorize_pipelines.settings import Settings, load_settings


def assessment_tasks_asset(settings: Settings) -> dg.AssetsDefinition:
    """Return the asset `assessment_tasks`."""
    kafka, wiring = settings.kafka, STREAM_JOBS[DETECTIONS]

    @dg.asset(
        name=wiring.asset,
        description=f"The groups of the detections in {kafka.detections_topic} that are to be assessed, as tasks in "
        f"{kafka.assessment_tasks_topic}. The settings assessments.rule say which are.",
        partitions_def=daily_partitions(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        metadata={"topic": kafka.detections_topic},
        code_version=f"messages={VERSION} rule={settings.assessments.rule.model_dump_json()}",
        pool=wiring.pool,
        retry_policy=RETRIES,
        kinds={"kafka", "python"},
        owners=OWNERS,
        group_name="assessments",
    )
    def assessment_tasks(context: dg.AssetExecutionContext, config: FollowConfig) -> None:
        """Make tasks until the run is to end."""
        with translate_errors(), _opened(context, config) as run:
            run.run()
            days = {day: _day_metadata(run, day) for day in run.days}
            report_days(context, days, DayFigures().as_dict(), run_metadata(run))

    return assessment_tasks


def _opened(context: dg.AssetExecutionContext, config: FollowConfig) -> TaskRun:
    settings, run = load_settings(), context.run
    require_servers(settings.kafka)
    if config.mode == "replay":
        return open_task_replay(settings, run.run_id, window_of(context.partition_key_range))
    return open_task_drain(settings, take_over(context, config, settings, DETECTIONS))


def _day_metadata(run: TaskRun, day: str) -> dict[str, Any]:
    failures = [each for each in run.failures if each.day == day]
    return {**run.days[day].as_dict(), **({"failures": failures_table(failures)} if failures else {})}
