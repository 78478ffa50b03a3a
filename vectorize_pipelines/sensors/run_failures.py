"""The sensors that tell of runs that failed or were ended: people, and those whose request such a run was."""

from contextlib import closing
from typing import Any

import dagster as dg

from vectorize_pipelines.assets.single_request import embed_request
from vectorize_pipelines.core.urls import shown_origin
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.messaging.messages import InvalidMessageError
from vectorize_pipelines.pipeline.requests.runs import abandon_single
from vectorize_pipelines.pipeline.requests.single import SingleRequest
from vectorize_pipelines.runs.dead import is_reminder
from vectorize_pipelines.runs.tags import NEVER_BEGUN_TAG, WILL_RETRY_TAG
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.ledger import RequestLedger

TIMEOUT_SECONDS = 10


class RunDiedError(VectorizeError):
    """The process of a request's run died, as often as Dagster started it."""


@dg.run_failure_sensor(
    description="Posts every failed run as JSON to `alerts.webhook_url`, where one is configured.",
    default_status=dg.DefaultSensorStatus.RUNNING,
    monitor_all_code_locations=False,
)
def failed_runs(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
    """A webhook that does not take it fails the tick, which the UI shows."""
    import requests

    webhook = load_settings().alerts.webhook_url
    if webhook is None:
        return dg.SkipReason("alerts.webhook_url (VECTORIZE_ALERTS__WEBHOOK_URL) is not set.")
    run = context.dagster_run
    if NEVER_BEGUN_TAG in run.tags:
        return dg.SkipReason("The run was told to end before it had begun; nothing is lost.")
    if is_reminder(context.failure_event.message):
        return dg.SkipReason("The same failure was posted already.")
    body = {
        "run_id": run.run_id,
        "job": run.job_name,
        "status": run.status.value,
        "partition": run.tags.get("dagster/partition") or run.tags.get("dagster/asset_partition_range_start"),
        "mode": run.tags.get("vectorize/mode", "replay"),
        "error": context.failure_event.message,
    }
    try:
        requests.post(webhook.get_secret_value(), json=body, timeout=TIMEOUT_SECONDS).raise_for_status()
    except requests.RequestException as error:
        # The exception's own message holds the URL, and webhook URLs hold their secret.
        status = error.response.status_code if error.response is not None else "no answer"
        where = shown_origin(webhook.get_secret_value())
        raise dg.Failure(
            f"the webhook at {where} did not take run {run.run_id}: {type(error).__name__} ({status})"
        ) from None
    return None


@dg.run_failure_sensor(
    monitored_jobs=[embed_request],
    description="Notes a request of the job `embed_request` as failed whose run died and is not started again.",
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def failed_requests(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
    """A run that failed by itself has noted that; one whose process died could not."""
    if context.dagster_run.tags.get(WILL_RETRY_TAG) == "true":
        return dg.SkipReason("Dagster starts the run again.")
    why = "the process of its run died: out of memory, a crash in a native library, or a kill from outside; its log may"
    return _abandon(context, RunDiedError(f"{why} say which. Send it again once that is mended"))


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.CANCELED,
    monitored_jobs=[embed_request],
    description="Notes a request of the job `embed_request` as cancelled whose run was terminated before it began.",
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def cancelled_requests(context: dg.RunStatusSensorContext) -> dg.SkipReason | None:
    """A run that was at work has noted that by itself; one that still waited in the queue could not."""
    return _abandon(context, None)


def _abandon(context: dg.RunStatusSensorContext, error: Exception | None) -> dg.SkipReason | None:
    """Note the end of a run's request, unless that is noted already or another run is at it."""
    run = context.dagster_run
    settings = load_settings()
    ops: Any = run.run_config.get("ops", {})
    content: dict[str, Any] = ops.get("request", {}).get("config", {})
    try:
        single = SingleRequest.of(content, run.run_id, run.tags)
    except InvalidMessageError as invalid:
        return dg.SkipReason(f"The run's config is no request: {invalid}")
    with closing(RequestLedger.open(settings)) as ledger:
        row = ledger.get(single.request.task_id)
    if row is not None and (row.state.is_final or _is_under_way(context.instance, row.run_id)):
        return dg.SkipReason(f"The request is {row.state.value}.")
    abandon_single(settings, single, error)
    return None


def _is_under_way(instance: dg.DagsterInstance, run_id: str | None) -> bool:
    """Return whether a request is in the hands of another run, which somebody else launched for it."""
    run = instance.get_run_by_id(run_id) if run_id is not None else None
    return run is not None and not run.is_finished
