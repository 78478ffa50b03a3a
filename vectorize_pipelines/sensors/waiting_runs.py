"""The sensor that sends runs again whose messages in Redis are lost, where workers on several hosts take them."""

import dagster as dg

from vectorize_pipelines.errors import LedgerError, RedisUnavailableError
from vectorize_pipelines.settings import Settings, load_settings

INTERVAL_SECONDS = 5


def waiting_runs_sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """Return the sensor where `run_launcher: celery` is set; else none."""
    return [_waiting_runs] if settings.run_launcher == "celery" else []


@dg.sensor(
    name="waiting_runs",
    minimum_interval_seconds=INTERVAL_SECONDS,
    description="Sends launched runs to the workers again that Redis has lost.",
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def _waiting_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """A server that is away is asked again by the next tick."""
    from vectorize_pipelines.runs.instance import hands_runs_to_workers
    from vectorize_pipelines.runs.workers.waiting import send_again

    if not hands_runs_to_workers(context.instance):
        return dg.SkipReason("dagster.yaml names another launcher: no run waits in Redis.")
    try:
        sent = send_again(context.instance, load_settings())
    except (LedgerError, RedisUnavailableError) as error:
        return dg.SkipReason(f"{error}")
    return dg.SkipReason(f"Sent again: {', '.join(sent)}." if sent else "No run's message is lost.")
