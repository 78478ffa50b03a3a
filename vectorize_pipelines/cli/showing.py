"""A run in the command's process as it is shown: progress while it lasts, figures afterwards."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from vectorize_pipelines.pipeline.totals import DayTotals
from vectorize_pipelines.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console as Terminal
    from rich.progress import Progress, TaskID

    from vectorize_pipelines.pipeline.stream import EmbeddingStream

FAILURES_SHOWN = 20
NOTICES_SHOWN = 20
FIGURES = (
    *("documents", "chunks", "encoded", "skipped", "cache_hits", "deduplicated", "deleted"),
    *("failed", "incomplete", "assumed", "truncated", "tokens"),
)
#: Further ones of a run over files.
FILE_FIGURES = ("left_out",)


class RunLog(logging.Handler):
    """The library's log on stderr, and how far the stream is: on a terminal by a bar, else line by line.

    Remembers the stream, whose totals the command prints at the end.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(logging.DEBUG)
        self.stream: EmbeddingStream | None = None
        self._shown_level = logging.getLevelName(settings.log_level)
        # Dagster puts a pipe in the place of stderr while a run lasts, to keep what is printed.
        self._stderr = os.fdopen(os.dup(sys.stderr.fileno()), "w", errors="backslashreplace")
        self._bar = _Bar(_terminal(self._stderr)) if self._stderr.isatty() else None

    def emit(self, record: logging.LogRecord) -> None:
        stream = getattr(record, "stream", None)
        if stream is not None:
            self.stream = stream
        if stream is not None and self._bar is not None:
            self._bar.show(stream)
        elif record.levelno < self._shown_level:
            return
        elif self._bar is not None:
            self._bar.say(record.getMessage())
        else:
            print(record.getMessage(), file=self._stderr, flush=True)

    def finish(self) -> None:
        """Close the log. Not `close`, which `logging.config` calls on every handler when Dagster configures its own."""
        if self._bar is not None:
            self._bar.close()
        self._stderr.close()


class _Bar:
    """The progress of a run at the bottom of a terminal, below the lines that are printed meanwhile."""

    def __init__(self, terminal: "Terminal"):
        self._terminal = terminal
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def show(self, stream: "EmbeddingStream") -> None:
        done = stream.totals.sum()
        if self._progress is None or self._task is None:
            self._progress = _progress(self._terminal)
            self._task = self._progress.add_task(stream.collection, total=stream.expected, encoded=0)
            self._progress.start()
        self._progress.update(self._task, total=stream.expected, completed=done.documents, encoded=done.encoded)

    def say(self, message: str) -> None:
        self._terminal.print(message, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _terminal(file: Any) -> "Terminal":
    from rich.console import Console as Terminal

    return Terminal(file=file)


def _progress(terminal: "Terminal") -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("documents, {task.fields[encoded]} chunks encoded", markup=False),
        TimeElapsedColumn(),
        console=terminal,
        # What is printed meanwhile is the command's result, or goes through `say`.
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextlib.contextmanager
def run_log(settings: Settings) -> Iterator[RunLog]:
    """Attach the log on stderr before Dagster attaches its own handler, which rewrites the messages it forwards."""
    logger = logging.getLogger("vectorize_pipelines")
    handler = RunLog(settings)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        handler.finish()


def figures(stream: "EmbeddingStream | None") -> dict[str, Any]:
    """Return the run's figures; zeros where it failed before it had a stream, so that scripts find the same keys."""
    done = DayTotals() if stream is None else stream.totals.sum()
    found: dict[str, Any] = {name: getattr(done, name) for name in FIGURES}
    found["days"] = [] if stream is None else sorted(stream.touched)
    found["failures"] = [
        {"source": failure.source_id, "error": failure.error_class, "message": failure.message}
        for failure in (() if stream is None else stream.failures)
    ]
    found["notices"] = [
        {"source": each.source_id, **each.notice.as_dict()} for each in (() if stream is None else stream.notices)
    ]
    return found


def skipped_in_words(outcome: Mapping[str, Any]) -> str:
    """Say how many items were not encoded, and of how many the vector was there, for the same content."""
    shared = ((outcome["cache_hits"], "from the embedding cache"), (outcome["deduplicated"], "of repeated content"))
    known = ", ".join(f"{number} {origin}" for number, origin in shared if number)
    return f"{outcome['skipped']} skipped{known and f' ({known})'}"


def show_failures(failures: Sequence[Mapping[str, str]], whole: str | None = None) -> None:
    """Print the first failures of a run; `whole` says what --json has of more."""
    for failure in failures[:FAILURES_SHOWN]:
        click.echo(f"  {failure['source']}: {failure['error']}: {failure['message']}")
    if whole is not None and len(failures) > FAILURES_SHOWN:
        click.echo(f"  … and {len(failures) - FAILURES_SHOWN} more; --json lists {whole}")


def show_notices(outcome: Mapping[str, Any]) -> None:
    """Print on stderr what is not embedded of documents that were, and what was guessed in reading them.

    It is there whatever stdout is: what is missing must not be missed where only figures are read.
    """
    for notice in outcome["notices"][:NOTICES_SHOWN]:
        show_notice(notice["source"], notice)
    if (more := len(outcome["notices"]) - NOTICES_SHOWN) > 0:
        click.echo(
            f"… and {more:,} more; {outcome['incomplete']:,} documents are incomplete, {outcome['assumed']:,} were "
            "read by an assumption; --json lists them",
            err=True,
        )


def show_notice(source: str, notice: Mapping[str, str]) -> None:
    """Print on stderr one notice of a document or request, as `core.notices.Notice.as_dict` has it."""
    click.echo(f"{notice['kind']}: {source}: {notice['what']}; {notice['remedy']}", err=True)


def notices_in_words(outcome: Mapping[str, Any]) -> str:
    """Say how many documents are incomplete, or were read by a guess; goes on from the number of those that failed."""
    words = ((outcome["incomplete"], "incomplete"), (outcome["assumed"], "read by an assumption"))
    return "".join(f", {number:,} {said}" for number, said in words if number)
