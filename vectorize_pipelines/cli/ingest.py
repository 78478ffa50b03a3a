"""`vectorize ingest`: one drain run of an asset from files, in this process, on the project's instance."""

import contextlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from vectorize_pipelines.cli.reporting import report
from vectorize_pipelines.cli.running import execute
from vectorize_pipelines.cli.sharded import ShardProcesses, ended_by_signals, summed
from vectorize_pipelines.cli.showing import (
    FILE_FIGURES,
    notices_in_words,
    run_log,
    show_failures,
    skipped_in_words,
)
from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.errors import SourceError
from vectorize_pipelines.settings import COLLECTION_NAME, COLLECTION_RULE, Settings
from vectorize_pipelines.sources.files import FileSource, normalised_root
from vectorize_pipelines.state.collection_locks import MOST_SHARDS
from vectorize_pipelines.state.generations import EmbeddingConfig, resolve_embedding_config
from vectorize_pipelines.state.home import enter_home, use_dagster_home
from vectorize_pipelines.state.manifest import open_existing_manifest

KINDS = ("documents", "images")
JOBS = {"corpus_embeddings": "embed_corpus", "gallery_embeddings": "embed_gallery"}


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
    help="Model: a name or a local directory.  [default: the collection's own where it was embedded again; else the "
    "setting models.text, for images models.image]",
)
@click.option("--force", is_flag=True, help="Encode also what has not changed.")
@click.option(
    "--reconcile",
    is_flag=True,
    help="Hold what is remembered of the files against the store, and against the contents of all files, first: "
    "each is read.",
)
@click.option(
    "--follow-links/--no-follow-links",
    default=None,
    help="Follow links that lead out of PATH, or list them as failures.  [default: the setting corpus.follow_links, "
    "for images gallery.follow_links]",
)
@click.option(
    "--allow-empty/--no-allow-empty",
    default=None,
    help="Delete the rows of a PATH that holds no files any more, or refuse the run, since a disk may be away.  "
    "[default: the setting corpus.allow_empty, for images gallery.allow_empty]",
)
@click.option(
    "--shards",
    type=click.IntRange(1, MOST_SHARDS),
    help="Bring PATH up to date in so many parts, each by a process of its own, as many at once as there are cores.",
)
@click.option("--shard", metavar="I/N", help="Bring one part of so many up to date, as 0/4; the others are left alone.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    path: str,
    kind: str,
    collection: str | None,
    model: str | None,
    force: bool,
    reconcile: bool,
    follow_links: bool | None,
    allow_empty: bool | None,
    shards: int | None,
    shard: str | None,
    as_json: bool,
) -> int:
    """Bring a collection up to date with PATH: a folder, a file, or any fsspec URL.

    New and changed files are embedded, unchanged ones left alone, deleted ones removed from the collection.
    It is one run on the project's Dagster instance, so it shows in the UI with every day that it touched. Killed at
    any moment, the next call completes the work.
    """
    settings = enter_home()
    if collection is not None and not re.fullmatch(COLLECTION_NAME, collection):
        raise click.BadParameter(f"{collection!r} {COLLECTION_RULE}", param_hint="--collection")
    if shards is not None and shard is not None:
        raise click.UsageError("--shards brings all parts up to date, --shard one of them: give one of the two")
    part = Shard.parse(shard) if shard is not None else WHOLE
    if not path.strip():
        raise click.BadParameter("is empty; give a folder, a file or a URL", param_hint="PATH")
    path = normalised_root(path)
    use_dagster_home(settings)  # before anything else looks into the home: it says so where that cannot be
    images = (_kind(settings, path, collection) if kind == "auto" else kind) == "images"
    asset, section, default_model = (
        ("gallery_embeddings", settings.gallery, settings.models.image)
        if images
        else ("corpus_embeddings", settings.corpus, settings.models.text)
    )
    if shards is not None and shards > 1:
        options: dict[str, str | bool | None] = {"--collection": collection, "--model": model, "--kind": KINDS[images]}
        options |= {"--force": force, "--reconcile": reconcile}
        options |= {"--follow-links": follow_links is True, "--no-follow-links": follow_links is False}
        options |= {"--allow-empty": allow_empty is True, "--no-allow-empty": allow_empty is False}
        arguments = [*_words(options), "--", path]
        about_shards = {"collection": collection or section.collection, "path": path}
        return _in_shards(arguments, Shard.layout(shards), about_shards, as_json=as_json)
    default = EmbeddingConfig(model_name(default_model))
    now = resolve_embedding_config(settings, collection or section.collection, model_name(model or ""), default)
    config = {
        "mode": "drain",
        "path": path,
        "collection": collection or section.collection,
        # Where the collection has a model of its own, the run says which.
        "model": now.model if model or now == default else "",
        "force": force,
        "reconcile": reconcile,
        "compare_contents": reconcile,
        **({} if follow_links is None else {"follow_links": follow_links}),
        **({} if allow_empty is None else {"allow_empty": allow_empty}),
        **({} if part.is_whole else {"shard": str(part)}),
    }
    started = time.monotonic()
    with run_log(settings) as shown:
        result = execute(settings, JOBS[asset], asset, config)
    about = {
        "collection": config["collection"],
        "path": config["path"],
        "seconds": round(time.monotonic() - started, 2),
        **(dict.fromkeys(FILE_FIGURES, 0) if shown.stream is None else shown.stream.figures()),
        "other_kinds": {} if shown.stream is None else dict(shown.stream.other_kinds()),
        **({} if shard is None else {"shard": str(part)}),
    }
    return report(result, shown.stream, about, _print, refused=("failed", "incomplete"), as_json=as_json)


def model_name(model: str) -> str:
    """Return a local directory as the one spelling that it has, so that a collection knows its model again."""
    return os.path.normpath(Path(model).absolute()) if model and Path(model).is_dir() else model


def _kind(settings: Settings, path: str, collection: str | None) -> str:
    """Return the kind that was embedded of a path before; else the kind that lies there: images if no documents do.

    Raises `click.UsageError` where both were embedded.
    """
    from vectorize_pipelines.documents.recognition import SIDECAR_SUFFIXES, SUPPORTED_SUFFIXES
    from vectorize_pipelines.pipeline.files.documents import corpus_source
    from vectorize_pipelines.pipeline.files.images import gallery_source

    documents, images = corpus_source(settings, path), gallery_source(settings, path)
    had_documents = _embedded(settings, collection or settings.corpus.collection, documents)
    had_images = _embedded(settings, collection or settings.gallery.collection, images)
    if had_documents and had_images:
        raise click.UsageError(f"documents and images of {path} have been embedded: say which by --kind, one by one")
    if had_documents or had_images:
        return "images" if had_images else "documents"
    try:
        # What programs lay beside pictures makes them no documents.
        alone = corpus_source(
            settings, path, suffixes=[each for each in SUPPORTED_SUFFIXES if each not in SIDECAR_SUFFIXES]
        )
        return "images" if not alone.has_any() and images.has_any() else "documents"
    except SourceError:
        return "documents"  # the run, which cannot read it either, has the error in its result


def _embedded(settings: Settings, collection: str, source: FileSource) -> bool:
    """Return whether the collection has files of this source."""
    manifest = open_existing_manifest(settings, collection)
    if manifest is None:
        return False
    with contextlib.closing(manifest):
        return any(source.takes(entry.source_id) for entry in manifest.below(source.root) if not entry.is_in_doubt)


def _words(options: Mapping[str, str | bool | None]) -> list[str]:
    """Return options as words of a command line: those that have a value, and the flags that are set."""
    return [name if value is True else f"{name}={value}" for name, value in options.items() if value]


def _in_shards(arguments: Sequence[str], shards: Sequence[Shard], about: Mapping[str, str], *, as_json: bool) -> int:
    """Bring all shards up to date, tell what became of them, and return the exit code."""
    started = time.monotonic()
    with ShardProcesses("ingest", arguments) as processes, ended_by_signals(processes):
        found = summed(processes.run(shards))
    code = int(found.pop("exit_code"))
    outcome = {**about, "seconds": round(time.monotonic() - started, 2), **found}
    if as_json:
        click.echo(json.dumps(outcome, ensure_ascii=False, indent=2))
    else:
        _print(outcome)
    for error in outcome["errors"]:
        click.echo(f"error: {error}", err=True)
    return code


def _print(outcome: Mapping[str, Any]) -> None:
    click.echo(
        f"{outcome['collection']}: {outcome['documents']} documents, {outcome['failed']} of them failed"
        f"{notices_in_words(outcome)}; "
        f"{outcome['chunks']} chunks, {outcome['encoded']} encoded, {skipped_in_words(outcome)}, "
        f"{outcome['deleted']} deleted ({outcome['seconds']} s, {_runs(outcome)})"
    )
    if outcome["left_out"]:
        click.echo(f"  {outcome['left_out']} temporary files (locks, copies, halves of downloads) are left out")
    show_failures(outcome["failures"], "all of them")


def _runs(outcome: Mapping[str, Any]) -> str:
    runs = outcome.get("runs")
    return f"run {outcome['run_id'][:8]}" if runs is None else f"{len(runs)} shards"
