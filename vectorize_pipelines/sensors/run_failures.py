"""The sensor that tells people of failed runs."""

import dagster as dg

from vectorize_pipelines.jobs import NEVER_BEGUN_TAG
from vectorize_pipelines.settings import load_settings

TIMEOUT_SECONDS = 10


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
        raise dg.Failure(f"the webhook did not take run {run.run_id}: {type(error).__name__} ({status})") from None
    return None
