"""Runs that a command carries out in its own process, on the project's Dagster instance, and how they end early."""

import contextlib
import gc
import logging
import signal
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

logger = logging.getLogger(__name__)

LAUNCHED_BY = "cli"
#: How often it is looked whether a run has ended or is to end.
LOOK_SECONDS = 0.2


def execute(
    settings: Settings,
    job: str,
    asset: str,
    config: dict[str, Any],
    *,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> "dg.ExecuteInProcessResult":
    """Execute a drain run of an asset, as a run of today's partition; without `tags`, `config` names the collection.

    Failures are in the result.
    """
    with large_imports():
        from vectorize_pipelines.definitions import defs
        from vectorize_pipelines.partitions import today
        from vectorize_pipelines.runs.dead import close_dead_runs
        from vectorize_pipelines.runs.held import held
        from vectorize_pipelines.runs.instance import open_instance
        from vectorize_pipelines.runs.tags import COLLECTION_TAG, LAUNCHED_BY_TAG, MAX_RETRIES_TAG, MODE_TAG, SHARD_TAG

    if tags is None:
        tags = {COLLECTION_TAG: config["collection"], **({SHARD_TAG: config["shard"]} if "shard" in config else {})}

    run_config: dict[str, Any] = {
        "ops": {asset: {"config": config}},
        # Dagster's console log would print every event; errors are printed below, in the words meant for the user.
        "loggers": {"console": {"config": {"log_level": "DEBUG" if settings.log_level == "DEBUG" else "CRITICAL"}}},
    }
    with open_instance(settings) as instance:
        close_dead_runs(instance, settings)
        run_id = run_id or str(uuid.uuid4())
        with held(settings, run_id):
            return defs.resolve_job_def(job).execute_in_process(
                instance=instance,
                run_id=run_id,
                partition_key=today(),
                run_config=run_config,
                tags={
                    MODE_TAG: "drain",
                    **tags,
                    LAUNCHED_BY_TAG: LAUNCHED_BY,
                    # The daemon has nothing to start this run again with; the command's caller calls it again.
                    MAX_RETRIES_TAG: "0",
                },
                raise_on_error=False,
            )


def execute_until_interrupted(
    settings: Settings, job: str, asset: str, config: dict[str, Any], tags: Mapping[str, str]
) -> "tuple[dg.ExecuteInProcessResult, bool]":
    """Execute as `execute`; at Ctrl-C or SIGTERM have the run wind down. Returns also whether it was interrupted.

    It runs in another thread, where signals do not reach it: Dagster would end it as failed, in the middle of a batch.
    Further signals change nothing: the run is awaited, and its result returned, however often one comes.
    """
    with large_imports():
        from vectorize_pipelines.runs.instance import open_instance

    run_id = str(uuid.uuid4())
    with (
        open_instance(settings) as instance,
        ThreadPoolExecutor(1, "run", _leave_interrupts_to_others) as thread,
        _signals_noted() as signals,
    ):
        running = thread.submit(execute, settings, job, asset, config, tags=tags, run_id=run_id)
        told = False
        while not running.done():
            if signals:
                if not told:
                    logger.warning("interrupted: what is in hand is finished")
                    told = True
                _tell_to_end(instance, run_id)
            wait([running], LOOK_SECONDS)
        return running.result(), told


@contextlib.contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM; one that this process was started to ignore stays ignored.

    In a list, since a handler may be interrupted by the next signal, and must not wait for a lock that it holds itself.
    """
    noted: list[int] = []
    heeded = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    for number in heeded:
        signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        for number, handler in heeded.items():
            signal.signal(number, handler)


def _leave_interrupts_to_others() -> None:
    """Block SIGINT in the run's thread, for the processes that it starts: a terminal's Ctrl-C reaches them, too.

    Those that Dagster has look after a run's output would end with a stack trace each. They end with this process.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _tell_to_end(instance: "dg.DagsterInstance", run_id: str) -> None:
    """Tag the run, where it has been made and does not have the tag. Called until the run has ended.

    Once is not enough: Dagster reads a run, changes it and writes it back as a whole, so that a change of its status at
    the same moment takes the tag away again. (Dagster's table of tags, which it filters by, then has the tag twice.)
    """
    import dagster as dg
    from sqlalchemy.exc import SQLAlchemyError

    from vectorize_pipelines.runs.tags import WIND_DOWN_TAG

    try:
        run = instance.get_run_by_id(run_id)
        if run is not None and WIND_DOWN_TAG not in run.tags:
            instance.add_run_tags(run_id, {WIND_DOWN_TAG: "interrupted"})
    except SQLAlchemyError as error:  # locked or away: the next call does it
        logger.warning("the run has not been told to end yet: %s: %s", type(error).__name__, error)
    except dg.DagsterRunNotFoundError:
        return  # deleted just now, which the run itself finds out, and ends


@contextlib.contextmanager
def large_imports() -> Iterator[None]:
    """Import without looking for garbage: what large imports make stays, and the search takes a tenth of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
