"""Executing a run in the process of a worker: by one at a time, and only while it has not begun."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import dagster as dg

from vectorize_pipelines.compat import execute_run, kept_connections
from vectorize_pipelines.runs.held import PREFIX
from vectorize_pipelines.runs.instance import open_instance
from vectorize_pipelines.runs.tags import MODE_TAG, TOPIC_TAG, WIND_DOWN_TAG
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.held_locks import LockLostError, LockTakenError
from vectorize_pipelines.state.leases import LEASE_SECONDS, hold

logger = logging.getLogger(__name__)

#: How often it is looked whether a run is terminated, or its worker ends.
LOOK_SECONDS = 1.0
#: A run that was interrupted and goes on is interrupted again after so long.
_AGAIN_SECONDS = 30.0
#: The lease of a process that was killed before its run had begun lapses within this time.
_WAIT_SECONDS = LEASE_SECONDS + 5.0
_LAUNCHED = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.NOT_STARTED)


def execute(settings: Settings, run_id: str, worker: str, is_ending: Callable[[], bool]) -> None:
    """Execute a launched run, unless it has begun or ended elsewhere; return when it has ended.

    worker     who executes it, in words
    is_ending  whether the worker is to end: the run then ends soon, and the rest of its work is another run's

    Called by the main thread. Raises `LedgerError` where the database fails before the run has begun.
    """
    with open_instance(settings) as instance, kept_connections(instance):
        if _waiting(instance, run_id) is None:
            return
        with closing(Database.open(settings)) as database:
            try:
                with hold(
                    database,
                    PREFIX + run_id,
                    f"run {run_id}",
                    holder=worker,
                    node=settings.node_name,
                    timeout_seconds=_WAIT_SECONDS,
                    whole_process=True,
                ):
                    if _is_to_be_executed(instance, run_id):
                        with _watched(instance, run_id, is_ending):
                            execute_run(instance, run_id)
            except LockTakenError:
                logger.info("run %s is executed by another process: nothing is done here", run_id)
            except LockLostError as error:
                logger.warning("run %s is another process's to repeat: %s", run_id, error)


def _is_to_be_executed(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Return whether a run has been launched and not begun. One that was terminated meanwhile ends here.

    To be asked under the run's lease: without it, another process may be just about to begin, or to end, the run.
    """
    run = _waiting(instance, run_id)
    if run is not None and run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, "The run was terminated before a worker took it up.")
        return False
    return run is not None


def _waiting(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun | None:
    """Return a run, unless it has certainly begun, or ended."""
    run = instance.get_run_by_id(run_id)
    if run is None:
        logger.info("run %s has been deleted: nothing is done", run_id)
    elif run.status in (*_LAUNCHED, dg.DagsterRunStatus.CANCELING):
        return run
    else:
        logger.info("run %s is %s already: nothing is done", run_id, run.status.value)
    return None


@contextmanager
def _watched(instance: dg.DagsterInstance, run_id: str, is_ending: Callable[[], bool]) -> Iterator[None]:
    """Have a thread end the run that the main thread executes in the body, once it is to end."""
    over = threading.Event()
    watch = _Watch(instance, run_id, is_ending, over)
    thread = threading.Thread(target=watch.work, name="watching the run", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Watch:
    """Looks once a second whether a run is to end, and has it end.

    A run that was terminated is interrupted. Where the worker ends, a run that drains a topic winds down: it finishes
    the batch in hand. Any other one is interrupted, which Dagster takes for the death of its process: it is repeated
    elsewhere, and goes on where this one has stopped.
    """

    def __init__(self, instance: dg.DagsterInstance, run_id: str, is_ending: Callable[[], bool], over: threading.Event):
        self._instance = instance
        self._run_id = run_id
        self._is_ending = is_ending
        self._over = over
        self._interrupted = float("-inf")

    def work(self) -> None:
        """Look until the run is over."""
        failed = False
        while not self._over.wait(LOOK_SECONDS):
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 (of any storage that is away: the lease says for how long it may)
                if not failed:
                    logger.warning("run %s cannot be looked at: %s", self._run_id, type(error).__name__)
                failed = True
            else:
                failed = False

    def _look(self) -> None:
        run = self._instance.get_run_by_id(self._run_id)
        if run is None or run.status == dg.DagsterRunStatus.CANCELING:
            self._interrupt()
        elif run.status == dg.DagsterRunStatus.STARTED and self._is_ending():
            if TOPIC_TAG not in run.tags or run.tags.get(MODE_TAG) != "drain":
                self._interrupt()
            # Again until it ends: a change of its status at the same moment takes the tag away.
            elif WIND_DOWN_TAG not in run.tags:
                self._instance.add_run_tags(self._run_id, {WIND_DOWN_TAG: "its worker ends"})

    def _interrupt(self) -> None:
        """Interrupt the main thread, in which Dagster waits for this signal; not while it cleans up after the last."""
        now = time.monotonic()
        if now - self._interrupted >= _AGAIN_SECONDS and not self._over.is_set():
            self._interrupted = now
            os.kill(os.getpid(), signal.SIGTERM)
