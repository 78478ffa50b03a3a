"""`risk_assessments`: what a multimodal model says of groups of road users; `camera_risk`: that by day and camera.

A run of the one judges the tasks of its days, or, with `mode: drain`, takes those that wait and follows the topic until
it is idle; sensors launch the latter (`sensors/assessments.py`).
"""

from contextlib import closing
from typing import Any

import dagster as dg
from pydantic import Field

from vectorize_pipelines.assets.assessment_runs import run_metadata, take_over
from vectorize_pipelines.assets.camera_report import camera_day_metadata, camera_plot
from vectorize_pipelines.assets.files import OWNERS, RETRIES
from vectorize_pipelines.jobs import STREAM_JOBS
from vectorize_pipelines.kafka.clients import require_servers
from vectorize_pipelines.kafka.followed import ASSESSMENTS
from vectorize_pipelines.partitions import daily_partitions, days_in, window_of
from vectorize_pipelines.pipeline.assessments.prompt import PROMPT_VERSION
from vectorize_pipelines.pipeline.assessments.runs import ReplayRequest, open_drain, open_replay
from vectorize_pipelines.pipeline.assessments.stream import AssessmentRun, DayFigures
from vectorize_pipelines.resources.keys import KeyPoolResource
from vectorize_pipelines.resources.language_model import LanguageModelResource
from vectorize_pipelines.runs.config import FollowConfig
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.runs.materializations import report_days
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.assessment_totals import LEVELS, AssessmentTotals

#: Moments of a day that its table shows.
WORST_SHOWN = 20


class AssessingConfig(FollowConfig):
    """The config of a run of `risk_assessments`; what is left empty is as the settings say."""

    force: bool = Field(False, description="replay: judge also what was judged before")


def risk_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the two assets."""
    return [_risk_assessments(settings), _camera_risk(settings)]


def _risk_assessments(settings: Settings) -> dg.AssetsDefinition:
    wiring = STREAM_JOBS[ASSESSMENTS]

    @dg.asset(
        name=wiring.asset,
        description=f"What a multimodal model says of the groups in {settings.kafka.assessment_tasks_topic}: a result "
        f"each in {settings.kafka.risk_results_topic}, and a row in the table of assessments.",
        partitions_def=daily_partitions(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=["assessment_tasks"],
        metadata={"topic": settings.kafka.assessment_tasks_topic},
        code_version=f"{settings.providers.model} prompt={PROMPT_VERSION}/{settings.assessments.prompt_version}",
        pool=wiring.pool,
        retry_policy=RETRIES,
        kinds={"kafka", "python"},
        owners=OWNERS,
        group_name="assessments",
    )
    def risk_assessments(
        context: dg.AssetExecutionContext,
        config: AssessingConfig,
        language_model: LanguageModelResource,
        keys: KeyPoolResource,
    ) -> None:
        """Judge tasks until the run is to end; its figures are the metadata of the days that it touched."""
        with translate_errors(), _opened(context, config, language_model) as run:
            run.run()
            days = {day: _day_metadata(figures) for day, figures in run.days.items()}
            report_days(context, days, _day_metadata(DayFigures()), {**run_metadata(run), **keys.metadata()})

    return risk_assessments


def _opened(
    context: dg.AssetExecutionContext, config: AssessingConfig, language_model: LanguageModelResource
) -> AssessmentRun:
    settings, run = load_settings(), context.run
    require_servers(settings.kafka)
    if config.mode == "replay":
        replay = ReplayRequest(run.run_id, window_of(context.partition_key_range), config.force)
        return open_replay(settings, replay, language_model.opener())
    return open_drain(settings, take_over(context, config, settings, ASSESSMENTS), language_model.opener())


def _day_metadata(figures: DayFigures) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "completed": figures.completed,
        "failed": figures.failed,
        "expired": figures.expired,
        "cached": figures.cached,
        "prompt_tokens": figures.prompt_tokens,
        "completion_tokens": figures.completion_tokens,
        "cost": round(figures.cost, 6),
    }
    if figures.completed:
        metadata["latency_seconds"] = round(figures.latency_seconds / figures.completed, 4)
    return metadata | {f"level/{level}": figures.levels[level] for level in LEVELS}


def _camera_risk(settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        description="What was assessed by day and camera: how many groups of each level, the worst moments, latency "
        "and cost.",
        partitions_def=daily_partitions(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[STREAM_JOBS[ASSESSMENTS].asset],
        kinds={"python"},
        owners=OWNERS,
        group_name="assessments",
    )
    def camera_risk(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        """Report on the rows of the run's partitions; the figures are the materialization's metadata."""
        days = days_in(window_of(context.partition_key_range))
        with translate_errors(), closing(AssessmentTotals.open(load_settings())) as totals:
            cameras = totals.by_camera(days)
            for day in days:
                worst = totals.worst(day, WORST_SHOWN)
                own = [each for each in cameras if each.day == day]
                context.add_asset_metadata(camera_day_metadata(own, worst), partition_key=day)
        return dg.MaterializeResult(metadata={"plot": camera_plot(cameras)})

    return camera_risk
