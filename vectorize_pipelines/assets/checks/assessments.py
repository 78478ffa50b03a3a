"""The checks of assessments. None of them blocks what is downstream: they are about providers and cameras.

In a run of `risk_assessments` the first two look at what it ended, else at today and yesterday. `silent_cameras` goes
by what runs of `assessment_tasks` have read, of whatever day the report is.
"""

from contextlib import closing
from datetime import UTC, datetime, time, timedelta

import dagster as dg

from vectorize_pipelines.assets.checks.vectors import embeds_too
from vectorize_pipelines.jobs import STREAM_JOBS
from vectorize_pipelines.kafka.followed import ASSESSMENTS
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.assessment_totals import AssessmentTotals, Outcomes
from vectorize_pipelines.state.cameras import Cameras

ASSET = STREAM_JOBS[ASSESSMENTS].asset
#: Share of judged groups whose answer has to be one.
LEAST_VALID = 0.95
#: Silent cameras that are named.
SHOWN = 20


def _yesterday(now: datetime) -> datetime:
    """Return the beginning of the day before: a run may have begun before midnight."""
    return datetime.combine(now.date() - timedelta(days=1), time(), UTC)


def _outcomes(context: dg.AssetCheckExecutionContext) -> Outcomes:
    now = datetime.now(UTC)
    with closing(AssessmentTotals.open(load_settings())) as totals:
        if embeds_too(context.run, ASSET):
            return totals.outcomes_of_run(context.run.run_id)
        return totals.outcomes([each.date().isoformat() for each in (_yesterday(now), now)])


@dg.asset_check(asset=ASSET)
def valid_answers(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """The model's answers are what it was asked for, nearly always."""
    with translate_errors():
        outcomes = _outcomes(context)
    share = outcomes.valid_share
    passed = share is None or share >= LEAST_VALID
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=None
        if passed
        else f"{outcomes.failed} groups could not be judged: `vectorize dead-letters` lists them, with the reasons.",
        metadata={
            "completed": outcomes.completed,
            "failed": outcomes.failed,
            **({} if share is None else {"valid_share": share}),
        },
    )


@dg.asset_check(asset=ASSET)
def fresh_results(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Groups are judged before their time is over."""
    with translate_errors():
        outcomes, settings = _outcomes(context), load_settings()
    limit = settings.assessments.deadline_seconds
    delay = outcomes.delay_seconds
    passed = not outcomes.expired and (delay is None or delay <= limit)
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=None
        if passed
        else f"{outcomes.expired} groups were not judged in time: more keys, or more runs, judge more in a second.",
        metadata={
            "expired": outcomes.expired,
            **({} if delay is None else {"delay_seconds": round(delay, 3)}),
        },
    )


@dg.asset_check(asset="camera_risk")
def silent_cameras() -> dg.AssetCheckResult:
    """Every camera that sent a detection today or yesterday, with groups or without, has sent one lately."""
    with translate_errors():
        settings, now = load_settings(), datetime.now(UTC)
        with closing(Cameras.open(settings)) as cameras:
            seen = cameras.last_seen(_yesterday(now))
    limit = settings.assessments.silent_seconds
    silent = {name: last for name, last in seen.items() if (now - last).total_seconds() > limit}
    named = ", ".join(f"{name} since {last:%Y-%m-%d %H:%M:%S}" for name, last in sorted(silent.items())[:SHOWN])
    return dg.AssetCheckResult(
        passed=not silent,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Nothing has come from {named} (UTC)." if silent else None,
        metadata={"cameras": len(seen), "silent": len(silent)},
    )


CHECKS = [valid_answers, fresh_results, silent_cameras]
