"""The launcher that hands runs to warm workers: dagster-celery's, with queues by kind and lost workers noticed.

The setting `run_launcher: celery` selects it, by `runs.instance`. What dagster-celery's own does otherwise: it sends
the configuration of the instance along, passwords included; it tags a run that may have begun, which can undo the run's
other tags; it asks the backend of results, which never learns that a worker was killed; and it ends runs by a message
to all workers, which one that is just connecting again misses.
"""

from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self

import dagster as dg
from dagster_celery.launcher import CeleryRunLauncher

from vectorize_pipelines.compat import CheckRunHealthResult, ConfigurableClassData, LaunchRunContext, WorkerStatus
from vectorize_pipelines.runs.held import PREFIX, is_leased
from vectorize_pipelines.runs.tags import CODE_SERVER_TAG
from vectorize_pipelines.runs.workers.app import app_arguments, check_available, send
from vectorize_pipelines.runs.workers.routing import queue_of
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.leases import LapsedLease, lapsed

if TYPE_CHECKING:
    from dagster._config import UserConfigSchema

_GIVEN_UP = (
    "The worker that executed the run has given it up without noting how it ended: Dagster's database was away, or "
    "refused it. The worker's log says why."
)


class WarmRunLauncher(CeleryRunLauncher):
    """Puts each run into the queue of its kind, from which workers take it.

    A run whose worker was killed, cut off or stalled is found by its lease, which lapses; Dagster's run monitoring then
    marks it as failed, and its automatic retries launch it again. Only `load_settings()` configures it.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None):
        """Connects to nothing yet. Raises `SettingsError` and `MissingExtraError`."""
        settings = load_settings()
        check_available(settings)
        super().__init__(**app_arguments(settings), inst_data=inst_data)

    @classmethod
    def config_type(cls) -> "UserConfigSchema":
        """Return what dagster.yaml may say: nothing. Called by Dagster."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """Return the launcher. Called by Dagster."""
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Put a run into its queue. Raises `SettingsError` and `RedisUnavailableError`, with which it fails."""
        run = context.dagster_run
        queue = queue_of(run)
        # First: once it is sent, a worker may begin it at any moment.
        self._instance.report_engine_event(
            f"The run waits for a worker that takes runs from the queue {queue}.", run, cls=self.__class__
        )
        send(self.celery, load_settings(), run.run_id, queue)

    def terminate(self, run_id: str) -> bool:
        """Have a run end: its process looks at its state once a second. One that no process executes ends here."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        if not is_leased(load_settings(), run_id):
            self._instance.report_run_canceled(run, "The run was terminated before a worker took it up.")
        return True

    @property
    def supports_resume_run(self) -> bool:
        """Return that a run is repeated, not resumed: its executor has no processes that could have gone on."""
        return False

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return that a run's worker is lost where nobody holds the run's lease.

        Called by Dagster's run monitoring for runs that have begun, which they do under their lease. One that ends
        meanwhile is left alone: it reads the run's state again.
        """
        lost = self._lost(run.run_id)
        if lost is not None:
            return CheckRunHealthResult(WorkerStatus.FAILED, _said(lost))
        if is_leased(load_settings(), run.run_id) or not self._is_launched_here(run):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, _GIVEN_UP)

    def get_run_worker_debug_info(self, run: dg.DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """Return who was to execute a run that has failed without saying why."""
        lost = self._lost(run.run_id)
        return None if lost is None else _said(lost)

    def _is_launched_here(self, run: dg.DagsterRun) -> bool:
        """Return whether a worker was to execute a run, and not a command, nor a code server before the setting."""
        launched = self._instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_STARTING)
        return bool(launched) and CODE_SERVER_TAG not in run.tags

    def _lost(self, run_id: str) -> LapsedLease | None:
        with closing(Database.open(load_settings())) as database:
            return next((each for each in lapsed(database, PREFIX + run_id)), None)


def _said(lost: LapsedLease) -> str:
    return (
        f"The run was executed on {lost.node} ({lost.holder}), which was killed, cut off or stalled: nothing was heard "
        f"of it after {lost.since:%Y-%m-%d %H:%M:%S} UTC."
    )
