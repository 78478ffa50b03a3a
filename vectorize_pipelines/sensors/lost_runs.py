"""The sensor that finds runs whose machine was lost, or whose process was killed, where several machines share them.

In Kubernetes it also adds to runs that were interrupted what interrupted them.
"""

import dagster as dg

from vectorize_pipelines.errors import LedgerError, SettingsError
from vectorize_pipelines.runs.dead import close_dead_runs, explain_interrupted_runs, remind_of_retries
from vectorize_pipelines.runs.held import is_shared
from vectorize_pipelines.settings import Settings, load_settings

#: With `leases.LEASE_SECONDS` and the time of a tick, everybody knows of a lost run within 30 s.
INTERVAL_SECONDS = 5


def lost_runs_sensor(settings: Settings) -> dg.SensorDefinition:
    """Return the sensor, which is on where several machines may use the database."""

    @dg.sensor(
        name="lost_runs",
        minimum_interval_seconds=INTERVAL_SECONDS,
        description="Marks runs as failed whose process has not said for 20 s that it lives; Dagster then starts them "
        "again. Only with PostgreSQL: one machine notices by itself.",
        default_status=dg.DefaultSensorStatus.RUNNING if _is_shared(settings) else dg.DefaultSensorStatus.STOPPED,
    )
    def lost_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        """A database that is away is asked again by the next tick."""
        try:
            closed = close_dead_runs(context.instance, load_settings())
            explained = explain_interrupted_runs(context.instance)
            reminded = remind_of_retries(context.instance)
        except LedgerError as error:
            return dg.SkipReason(f"{error}")
        found = {"Lost": closed, "Interrupted by Kubernetes": explained, "Not started again yet": reminded}
        said = [f"{what}: {', '.join(run_ids)}." for what, run_ids in found.items() if run_ids]
        if said:
            return dg.SkipReason(" ".join(said))
        return dg.SkipReason("No run is lost.")

    return lost_runs


def _is_shared(settings: Settings) -> bool:
    try:
        return is_shared(settings)
    except SettingsError:  # which whoever opens the database is told
        return False
