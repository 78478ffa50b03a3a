"""Runs that a command carries out in its own process, on the project's Dagster instance: started, shown, explained."""

import contextlib
import gc
import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from vectorize_pipelines.pipeline.totals import DayTotals
from vectorize_pipelines.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

    from vectorize_pipelines.pipeline.stream import EmbeddingStream

logger = logging.getLogger(__name__)

LAUNCHED_BY = "cli"
EXIT_FAILED = 1
#: What Dagster makes of SIGINT and SIGTERM.
INTERRUPTED = "DagsterExecutionInterruptedError"
EXIT_SOME_FAILED = 6
EXIT_INTERRUPTED = 130
FAILURES_SHOWN = 20
#: How often it is looked whether a run has ended or is to end.
LOOK_SECONDS = 0.2
FIGURES = ("documents", "chunks", "encoded", "skipped", "cache_hits", "deduplicated", "deleted", "failed", "tokens")


def execute(
    settings: Settings,
    job: str,
    asset: str,
    config: dict[str, Any],
    *,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> "dg.ExecuteInProcessResult":
    """A drain run of an asset, as a run of today's partition; `config` names the collection where no `tags` are given.

    Failures are in the result.
    """
    with large_imports():
        from dagster import DagsterInstance

        from vectorize_pipelines.dead_runs import close_dead_runs, run_lock
        from vectorize_pipelines.definitions import defs
        from vectorize_pipelines.jobs import COLLECTION_TAG, LAUNCHED_BY_TAG, MAX_RETRIES_TAG, MODE_TAG
        from vectorize_pipelines.partitions import today

    run_config: dict[str, Any] = {
        "ops": {asset: {"config": config}},
        # Dagster's console log would print every event; errors are printed below, in the words meant for the user.
        "loggers": {"console": {"config": {"log_level": "DEBUG" if settings.log_level == "DEBUG" else "CRITICAL"}}},
    }
    with DagsterInstance.get() as instance:
        close_dead_runs(instance, settings)
        run_id = run_id or str(uuid.uuid4())
        with run_lock(settings, run_id):
            return defs.resolve_job_def(job).execute_in_process(
                instance=instance,
                run_id=run_id,
                partition_key=today(),
                run_config=run_config,
                tags={
                    MODE_TAG: "drain",
                    **({COLLECTION_TAG: config["collection"]} if tags is None else tags),
                    LAUNCHED_BY_TAG: LAUNCHED_BY,
                    # The daemon has nothing to start this run again with; whoever called the command calls it again.
                    MAX_RETRIES_TAG: "0",
                },
                raise_on_error=False,
            )


def execute_until_interrupted(
    settings: Settings, job: str, asset: str, config: dict[str, Any], tags: Mapping[str, str]
) -> "tuple[dg.ExecuteInProcessResult, bool]":
    """As `execute`; at Ctrl-C or SIGTERM the run is told to wind down. Gives also whether it was.

    It runs in another thread, where signals do not reach it: Dagster would end it as failed, in the middle of a batch.
    Further signals change nothing: the run is awaited, and its result told, however often one comes.
    """
    with large_imports():
        from dagster import DagsterInstance

    run_id = str(uuid.uuid4())
    # Opened before the run opens its own: two that make the database of a new installation at once fail.
    with (
        DagsterInstance.get() as instance,
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
    """Notes SIGINT and SIGTERM; one that whoever started this process had it ignore stays ignored.

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
    """In the run's thread, for the processes that it starts: a terminal's Ctrl-C reaches them, too.

    Those that Dagster has look after a run's output would end with a stack trace each. They end with this process.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _tell_to_end(instance: "dg.DagsterInstance", run_id: str) -> None:
    """Tags the run, where it has been made and has the tag not. Called until the run has ended.

    Once is not enough: Dagster reads a run, changes it and writes it back as a whole, so that a change of its status at
    the same moment takes the tag away again. (Dagster's table of tags, which it filters by, then has the tag twice.)
    """
    from dagster._core.errors import DagsterRunNotFoundError
    from sqlalchemy.exc import SQLAlchemyError

    from vectorize_pipelines.jobs import WIND_DOWN_TAG

    try:
        run = instance.get_run_by_id(run_id)
        if run is not None and WIND_DOWN_TAG not in run.tags:
            instance.add_run_tags(run_id, {WIND_DOWN_TAG: "interrupted"})
    except SQLAlchemyError as error:  # locked or away: the next call does it
        logger.warning("the run has not been told to end yet: %s: %s", type(error).__name__, error)
    except DagsterRunNotFoundError:
        return  # deleted just now, which the run itself finds out, and ends


@contextlib.contextmanager
def large_imports() -> Iterator[None]:
    """For large imports: looking for garbage among what they make, which stays, takes a tenth of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class Console(logging.Handler):
    """Shows on stderr what the library logs, and how far the stream is: on a terminal by a bar, else line by line.

    Remembers the stream, whose totals the command prints at the end.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(logging.DEBUG)
        self.stream: EmbeddingStream | None = None
        self._shown_level = logging.getLevelName(settings.log_level)
        # Dagster puts a pipe in the place of stderr while a run lasts, to keep what is printed.
        self._stderr = os.fdopen(os.dup(sys.stderr.fileno()), "w", errors="backslashreplace")
        self._bar: tqdm[Any] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        stream = getattr(record, "stream", None)
        if stream is not None:
            self.stream = stream
        if stream is not None and self._stderr.isatty():
            self._draw(stream)
        elif record.levelno >= self._shown_level:
            tqdm.write(record.getMessage(), file=self._stderr)
            self._stderr.flush()

    def _draw(self, stream: "EmbeddingStream") -> None:
        done = stream.totals.sum()
        if self._bar is None:
            self._bar = tqdm(total=stream.expected, unit="doc", desc=stream.collection, file=self._stderr)
        self._bar.n = done.documents
        self._bar.set_postfix_str(f"{done.encoded} chunks encoded")

    def finish(self) -> None:
        """Not `close`, which `logging.config` calls on every handler when Dagster configures its own."""
        if self._bar is not None:
            self._bar.close()
        self._stderr.close()


@contextlib.contextmanager
def console(settings: Settings) -> Iterator[Console]:
    """The console, attached before Dagster attaches its own handler, which rewrites the messages that it forwards."""
    logger = logging.getLogger("vectorize_pipelines")
    handler = Console(settings)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        handler.finish()


def _figures(stream: "EmbeddingStream | None") -> dict[str, Any]:
    """What the run did; zeros where it failed before it had a stream, so that scripts find the same keys always."""
    done = DayTotals() if stream is None else stream.totals.sum()
    found: dict[str, Any] = {name: getattr(done, name) for name in FIGURES}
    found["days"] = [] if stream is None else sorted(stream.touched)
    found["failures"] = [
        {"source": failure.source_id, "error": failure.error_class, "message": failure.message}
        for failure in (() if stream is None else stream.failures)
    ]
    return found


def skipped_in_words(outcome: Mapping[str, Any]) -> str:
    """How many items were not encoded, and of how many the vector was there, for the same content."""
    shared = ((outcome["cache_hits"], "from the embedding cache"), (outcome["deduplicated"], "of repeated content"))
    known = ", ".join(f"{number} {origin}" for number, origin in shared if number)
    return f"{outcome['skipped']} skipped{known and f' ({known})'}"


def report(
    result: "dg.ExecuteInProcessResult",
    stream: "EmbeddingStream | None",
    about: Mapping[str, Any],
    show: Callable[[Mapping[str, Any]], None],
    *,
    refused: str,
    as_json: bool,
) -> int:
    """Tells what became of a run, and gives the exit code.

    about    what the command says of the run, between its status and its figures
    show     prints the outcome for people; called where there is one
    refused  the figure that counts what could not be embedded
    """
    errors, exit_code = _errors_of(result)
    outcome: dict[str, Any] = {
        "run_id": result.run_id,
        "status": "succeeded" if result.success else "failed",
        **about,
        **_figures(stream),
        "errors": errors,
    }
    if as_json:
        click.echo(json.dumps(outcome, ensure_ascii=False, indent=2))
    elif stream is not None:
        show(outcome)
    for error in errors:
        click.echo(f"error: {error}", err=True)
    return EXIT_SOME_FAILED if result.success and outcome[refused] else exit_code


def show_failures(failures: Sequence[Mapping[str, str]], whole: str | None = None) -> None:
    """Prints the first failures of a run; `whole` says what --json has of more."""
    for failure in failures[:FAILURES_SHOWN]:
        click.echo(f"  {failure['source']}: {failure['error']}: {failure['message']}")
    if whole is not None and len(failures) > FAILURES_SHOWN:
        click.echo(f"  … and {len(failures) - FAILURES_SHOWN} more; --json lists {whole}")


def _errors_of(result: "dg.ExecuteInProcessResult") -> tuple[list[str], int]:
    """What went wrong, in the words meant for the user, and the exit code."""
    messages: list[str] = []
    exit_code = 0 if result.success else EXIT_FAILED
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data.user_failure_data
            error = event.step_failure_data.error
            if failure is not None and "exit_code" in failure.metadata:
                exit_code = int(str(failure.metadata["exit_code"].value))
                messages.append(failure.description or "")
            elif error is not None:
                cause = error.cause or error
                if INTERRUPTED in (error.cls_name, cause.cls_name):
                    exit_code = EXIT_INTERRUPTED
                    messages.append("interrupted; what is written stays, and the same command goes on from there")
                else:
                    messages.append(f"{event.step_key}: {cause.message.strip()}")
    messages.extend(
        f"check {check.check_name} failed: {check.description or 'see the run in the UI'}"
        for check in result.get_asset_check_evaluations()
        if not check.passed
    )
    return messages, exit_code
