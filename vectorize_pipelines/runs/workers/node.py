"""A worker of this host: Celery's process, which takes runs from queues, and its pool of processes that execute them.

The processes of the pool are forked from one that has imported no model library and opened nothing. Each keeps what it
has loaded from run to run, and is seen by a heartbeat of its own.
"""

import importlib
import logging
import mmap
import multiprocessing
import os
import signal
import socket
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from vectorize_pipelines.core.request_runs import LOCATION
from vectorize_pipelines.encoders.hardware.devices import cuda_devices, device_of_shard
from vectorize_pipelines.runs.workers.app import TASK, celery_app
from vectorize_pipelines.settings import Settings, load_settings, variable_name
from vectorize_pipelines.state.heartbeats import NodeStatus, Pulse

if TYPE_CHECKING:
    from types import FrameType

logger = logging.getLogger(__name__)

_DEVICE = variable_name(("encoder", "device"))


def node_id(settings: Settings) -> str:
    """Return what tells this worker from every other one."""
    return settings.worker.node_id or f"{settings.node_name}-{os.getpid()}"


def work(settings: Settings) -> int:
    """Execute runs until SIGTERM or Ctrl-C, and return the exit code; those in hand end first (`execution.execute`).

    A second Ctrl-C ends everything at once; a second SIGTERM changes nothing. Redis is waited for while it is away.
    """
    from celery import signals
    from celery.exceptions import SecurityWarning

    # It speaks of an option that is none here, and of messages that are code, which these are not.
    warnings.simplefilter("ignore", SecurityWarning)
    app = celery_app(settings)
    # Shared with the processes that are forked. No lock is in it that one of them could take along when it is killed.
    ending = mmap.mmap(-1, 1)
    process = _PoolProcess(settings, node_id(settings), lambda: ending[0] != 0)

    def end(**_: Any) -> None:
        ending[0] = 1

    def leave_logging_alone(**_: Any) -> None:
        """Keep what the command has set up."""

    def begin(**_: Any) -> None:
        process.begin()

    def leave(**_: Any) -> None:
        process.leave()

    app.task(process.take, name=TASK)
    signals.worker_shutting_down.connect(end, weak=False)
    signals.setup_logging.connect(leave_logging_alone, weak=False)
    signals.worker_process_init.connect(begin, weak=False)
    signals.worker_process_shutdown.connect(leave, weak=False)
    worker = app.Worker(
        hostname=f"{node_id(settings)}@{socket.gethostname()}",
        pool="prefork",
        concurrency=settings.worker.processes,
        queues=list(settings.worker.queues),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


class _PoolProcess:
    """What a process of the pool does; made before it is forked."""

    def __init__(self, settings: Settings, worker: str, is_ending: Callable[[], bool]):
        self._settings = settings
        self._worker = worker
        self._is_ending = is_ending
        self._run_id: str | None = None
        self._run_queue: str | None = None
        self._pulse: Pulse | None = None

    def begin(self) -> None:
        """Make the process ready for its first run. Called in it by Celery, which logs what it raises."""
        # What a terminal or a service manager sends to the worker's group is for its main process alone, which has runs
        # wind down. When that is killed, so is this one.
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, self._terminate)
        # Runs have processes of their own, such as parsers, which those that Celery forks may not have.
        multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
        self._take_device()
        if self._settings.worker.processes > 1:
            self._worker = f"{self._worker}.{self._slot() + 1}"
        self._pulse = Pulse(self._settings, self._describe, self._settings.worker.heartbeat_seconds).__enter__()
        importlib.import_module(LOCATION)  # the first run need not wait for it

    def leave(self) -> None:
        """Have the process listed no more. Called in it by Celery at the end, after which nothing is cleaned up."""
        if self._pulse is not None:
            self._pulse.__exit__(None, None, None)

    def take(self, run_id: str) -> None:
        """Execute a run that was taken from a queue. The task of Celery."""
        from celery import current_task

        self.execute(run_id, current_task.request.delivery_info["routing_key"])

    def execute(self, run_id: str, queue: str) -> None:
        """Execute a run of a queue. Raises `Reject`, which gives it back, where the worker ends."""
        from celery.exceptions import Reject

        from vectorize_pipelines.runs.workers.execution import execute

        if self._is_ending():
            raise Reject("the worker ends", requeue=True)
        self._say(run_id, queue)
        began = time.monotonic()
        try:
            execute(load_settings(), run_id, f"worker {self._worker}, process {os.getpid()}", self._is_ending)
        finally:
            signal.signal(signal.SIGTERM, self._terminate)  # Dagster leaves another handler there
            self._say(None, None)
            logger.info("done with run %s after %.1f s", run_id, time.monotonic() - began)

    def _terminate(self, number: int, frame: "FrameType | None") -> None:
        """End a process that waits. While it executes a run, Dagster handles the signal; just before and after, nobody.

        Raises `SystemExit`.
        """
        if self._run_id is None:
            _end()

    def _take_device(self) -> None:
        """Give each process a GPU of its own where there are several."""
        device = device_of_shard(self._settings.encoder.device, self._slot(), len(cuda_devices()))
        if device != self._settings.encoder.device:
            os.environ[_DEVICE] = device

    def _slot(self) -> int:
        """Return the number of this process in the pool, which the one that replaces it has again."""
        return int(getattr(multiprocessing.current_process(), "index", 0))

    def _say(self, run_id: str | None, queue: str | None) -> None:
        self._run_id, self._run_queue = run_id, queue
        if self._pulse is not None:
            self._pulse.beat_soon()

    def _describe(self) -> NodeStatus:
        import psutil

        from vectorize_pipelines.encoders import encoder_cache

        loaded = list(encoder_cache().loaded())
        accelerators = [key.device for key in loaded if key.device != "cpu"]
        return NodeStatus(
            node_id=self._worker,
            name=self._settings.node_name,
            host=socket.gethostname(),
            queues=self._settings.worker.queues,
            models=tuple(dict.fromkeys(key.fingerprint.partition("@")[0] for key in loaded)),
            memory_bytes=psutil.Process().memory_info().rss,
            gpu=accelerators[0] if accelerators else None,
            run_id=self._run_id,
            run_queue=self._run_queue,
        )


def _end() -> NoReturn:
    raise SystemExit(0)
