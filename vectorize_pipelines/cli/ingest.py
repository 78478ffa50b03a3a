"""`vectorize ingest`: one drain run of an asset from files, in this process, on the project's instance."""

import contextlib
import gc
import json
import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from vectorize_pipelines.errors import SourceError
from vectorize_pipelines.home import manifest_file, use_dagster_home
from vectorize_pipelines.pipeline.totals import DayTotals
from vectorize_pipelines.settings import COLLECTION_NAME, COLLECTION_RULE, Settings, load_settings
from vectorize_pipelines.sources.files import FileSource, normalised_root
from vectorize_pipelines.sources.manifest import Manifest

if TYPE_CHECKING:
    import dagster as dg

    from vectorize_pipelines.pipeline.stream import EmbeddingStream

LAUNCHED_BY = "cli"
KINDS = ("documents", "images")
JOBS = {"corpus_embeddings": "embed_corpus", "gallery_embeddings": "embed_gallery"}
EXIT_FAILED = 1
EXIT_SOME_FILES_FAILED = 6
FAILURES_SHOWN = 20
FIGURES = ("documents", "chunks", "encoded", "skipped", "deleted", "failed", "tokens")


@click.command()
@click.argument("path")
@click.option(
    "--kind",
    type=click.Choice(["auto", *KINDS]),
    default="auto",
    show_default=True,
    help="What is embedded. auto: what was embedded of PATH before; else documents, or images where there are no "
    "documents.",
)
@click.option(
    "--collection",
    help="Collection to bring up to date.  [default: the setting corpus.collection, for images gallery.collection]",
)
@click.option(
    "--model",
    help="Model: a name or a local directory.  [default: the setting models.text, for images models.image]",
)
@click.option("--force", is_flag=True, help="Encode also what has not changed.")
@click.option("--reconcile", is_flag=True, help="Hold what is remembered of the files against the store first.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    path: str, kind: str, collection: str | None, model: str | None, force: bool, reconcile: bool, as_json: bool
) -> int:
    """Bring a collection up to date with PATH: a folder, a file, or any fsspec URL.

    New and changed files are embedded, unchanged ones left alone, deleted ones removed from the collection.
    It is one run on the project's Dagster instance, so it shows in the UI with every day that it touched. Killed at
    any moment, the next call completes the work.
    """
    settings = load_settings()
    if collection is not None and not re.fullmatch(COLLECTION_NAME, collection):
        raise click.BadParameter(f"{collection!r} {COLLECTION_RULE}", param_hint="--collection")
    path = normalised_root(path)
    images = (_kind(settings, path, collection) if kind == "auto" else kind) == "images"
    asset, section, default_model = (
        ("gallery_embeddings", settings.gallery, settings.models.image)
        if images
        else ("corpus_embeddings", settings.corpus, settings.models.text)
    )
    config = {
        "mode": "drain",
        "path": path,
        "collection": collection or section.collection,
        "model": _model_name(model or default_model),
        "force": force,
        "reconcile": reconcile,
    }
    use_dagster_home(settings)
    started = time.monotonic()
    with _console(settings) as console:
        result = _execute(settings, asset, config)
    return _report(result, console.stream, config, time.monotonic() - started, as_json=as_json)


def _model_name(model: str) -> str:
    """A local directory as the one spelling that it has, so that a collection knows its model again."""
    return os.path.normpath(Path(model).absolute()) if Path(model).is_dir() else model


def _kind(settings: Settings, path: str, collection: str | None) -> str:
    """What was embedded of a path before; else what lies there: images where there are images and no documents.

    Raises `click.UsageError` where both were embedded.
    """
    from vectorize_pipelines.pipeline.documents import corpus_source
    from vectorize_pipelines.pipeline.images import gallery_source

    documents, images = corpus_source(settings, path), gallery_source(settings, path)
    had_documents = _embedded(settings, collection or settings.corpus.collection, documents)
    had_images = _embedded(settings, collection or settings.gallery.collection, images)
    if had_documents and had_images:
        raise click.UsageError(f"documents and images of {path} have been embedded: say which by --kind, one by one")
    if had_documents or had_images:
        return "images" if had_images else "documents"
    try:
        return "images" if not documents.has_any() and images.has_any() else "documents"
    except SourceError:
        return "documents"  # the run, which cannot read it either, has the error in its result


def _embedded(settings: Settings, collection: str, source: FileSource) -> bool:
    """Whether the collection has files of this source."""
    file = manifest_file(settings, collection)
    if not file.exists():
        return False
    with contextlib.closing(Manifest.open(file)) as manifest:
        return any(source.takes(name) for name in manifest.entries() if source.holds(name))


def _execute(settings: Settings, asset: str, config: dict[str, Any]) -> "dg.ExecuteInProcessResult":
    with _imports():
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
        run_id = str(uuid.uuid4())
        with run_lock(settings, run_id):
            return defs.resolve_job_def(JOBS[asset]).execute_in_process(
                instance=instance,
                run_id=run_id,
                partition_key=today(),
                run_config=run_config,
                tags={
                    MODE_TAG: "drain",
                    COLLECTION_TAG: config["collection"],
                    LAUNCHED_BY_TAG: LAUNCHED_BY,
                    # The daemon has nothing to start this run again with; whoever called the command calls it again.
                    MAX_RETRIES_TAG: "0",
                },
                raise_on_error=False,
            )


@contextlib.contextmanager
def _imports() -> Iterator[None]:
    """For large imports: looking for garbage among what they make, which stays, takes a tenth of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class _Console(logging.Handler):
    """Shows on stderr what the library logs, and how far the stream is: on a terminal by a bar, else line by line.

    Remembers the stream, whose totals the command prints at the end.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(logging.DEBUG)
        self.stream: EmbeddingStream | None = None
        self._shown_level = logging.getLevelName(settings.log_level)
        # Dagster puts a pipe in the place of stderr while a run lasts, to keep what is printed.
        self._stderr = os.fdopen(os.dup(sys.stderr.fileno()), "w")
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
def _console(settings: Settings) -> Iterator[_Console]:
    """The console, attached before Dagster attaches its own handler, which rewrites the messages that it forwards."""
    logger = logging.getLogger("vectorize_pipelines")
    console = _Console(settings)
    logger.addHandler(console)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield console
    finally:
        logger.removeHandler(console)
        console.finish()


def _report(
    result: "dg.ExecuteInProcessResult",
    stream: "EmbeddingStream | None",
    config: dict[str, Any],
    seconds: float,
    *,
    as_json: bool,
) -> int:
    errors, exit_code = _errors(result)
    outcome: dict[str, Any] = {
        "run_id": result.run_id,
        "status": "succeeded" if result.success else "failed",
        "collection": config["collection"],
        "path": config["path"],
        "seconds": round(seconds, 2),
        **_figures(stream),
        "errors": errors,
    }
    if as_json:
        click.echo(json.dumps(outcome, ensure_ascii=False, indent=2))
    elif stream is not None:
        _print(outcome)
    for error in errors:
        click.echo(f"error: {error}", err=True)
    if result.success and outcome["failed"]:
        return EXIT_SOME_FILES_FAILED
    return exit_code


def _figures(stream: "EmbeddingStream | None") -> dict[str, Any]:
    """What the run did; zeros where it failed before it had a stream, so that scripts find the same keys always."""
    done = DayTotals() if stream is None else stream.totals.sum()
    figures: dict[str, Any] = {name: getattr(done, name) for name in FIGURES}
    figures["days"] = [] if stream is None else sorted(stream.touched)
    figures["failures"] = [
        {"source": failure.source_id, "error": failure.error_class, "message": failure.message}
        for failure in (() if stream is None else stream.failures)
    ]
    return figures


def _errors(result: "dg.ExecuteInProcessResult") -> tuple[list[str], int]:
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
                messages.append(f"{event.step_key}: {cause.message.strip()}")
    messages.extend(
        f"check {check.check_name} failed: {check.description or 'see the run in the UI'}"
        for check in result.get_asset_check_evaluations()
        if not check.passed
    )
    return messages, exit_code


def _print(outcome: dict[str, Any]) -> None:
    click.echo(
        f"{outcome['collection']}: {outcome['documents']} documents, {outcome['failed']} of them failed; "
        f"{outcome['chunks']} chunks, {outcome['encoded']} encoded, {outcome['skipped']} skipped, "
        f"{outcome['deleted']} deleted ({outcome['seconds']} s, run {outcome['run_id'][:8]})"
    )
    for failure in outcome["failures"][:FAILURES_SHOWN]:
        click.echo(f"  {failure['source']}: {failure['error']}: {failure['message']}")
    if len(outcome["failures"]) > FAILURES_SHOWN:
        click.echo(f"  … and {len(outcome['failures']) - FAILURES_SHOWN} more; --json lists all of them")
