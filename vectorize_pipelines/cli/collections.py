"""`vectorize collections`: what the store holds, and the change of a collection's model while it is used."""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from vectorize_pipelines.cli.tables import print_table
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.home import enter_home
from vectorize_pipelines.state.table_locks import TableLocks
from vectorize_pipelines.stores import open_store

if TYPE_CHECKING:
    from vectorize_pipelines.pipeline.generations.comparison import GenerationComparison
    from vectorize_pipelines.state.generations import Generation, Generations
    from vectorize_pipelines.stores.base import VectorStore

EXIT_NOT_READY = 1
EXIT_NOT_DROPPED = 1
EXIT_DAMAGED = 1

#: What is to be done about a damaged collection.
DAMAGED_REMEDY = "`vectorize collections drop {}`, then ingest again; requests come back by a replay of their days"

_as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print the collections as JSON.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> int:
    """List the collections: name, model, dimension, rows, and where they lie. Exits with 1 where one is damaged.

    The commands below change the model, or the passages, of a collection without downtime: `reembed` fills a new
    generation beside the one that is read, `switch` turns readers to it, `rollback` turns them back.
    """
    if context.invoked_subcommand is None:
        return _list(as_json)
    if as_json:
        raise click.UsageError(f"put --json behind {context.invoked_subcommand}")
    return 0


@command.command("list")
@_as_json
def list_(as_json: bool) -> int:
    """List the collections, as without a command."""
    return _list(as_json)


@command.command()
@click.argument("name")
@_as_json
def show(name: str, as_json: bool) -> None:
    """Show the generations of collection NAME: state, model, passages, rows by day, how long they are kept."""
    settings, store = _opened()
    with closing(_generations(settings)) as generations:
        _check_no_generation(generations, name)
        found = [_shown(store, each) for each in generations.of(name) if each.state != "dropped"]
    if not found:
        standing = store.collection(name)
        found = [{"collection": standing.name, "physical": standing.physical, "state": "live"}]
        found[0] |= {"model": standing.model, "dimension": standing.dimension, "chunk_tokens": None}
        found[0] |= {"overlap_tokens": None, "created": None, "changed": None, "keep_until": None}
        found[0] |= _rows(store, standing.physical)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    rows = [
        (
            each["physical"],
            each["state"],
            f"{each['rows']} rows",
            f"{len(each['partitions'])} day(s)",
            f"{each['model']} in {each['dimension']} dimensions",
            f"kept until {each['keep_until'][:16]}" if each["keep_until"] else "",
        )
        for each in found
    ]
    print_table(("generation", "state", "size", "days", "model", "kept"), rows, right=("size", "days"))


@command.command()
@click.argument("name")
@click.option("--model", default="", help="The model that it gets.  [default: that of the generation in the making]")
@click.option("--dimension", type=click.IntRange(1), help="Cut the vectors to so many dimensions.")
@click.option("--chunk-tokens", type=click.IntRange(16), help="Cut documents anew, into passages of so many tokens.")
@click.option("--overlap", type=click.IntRange(0), help="Cut documents anew, with so many tokens of overlap.")
@_as_json
def reembed(
    name: str, model: str, dimension: int | None, chunk_tokens: int | None, overlap: int | None, as_json: bool
) -> int:
    """Embed collection NAME again, all days in one run, beside the generation that is read.

    Texts come from the store, images from their URIs, documents keep their passages unless they are cut anew. What
    arrives meanwhile goes to both. Killed at any moment, the next call goes on where it was.
    """
    from vectorize_pipelines.cli.ingest import model_name
    from vectorize_pipelines.cli.running import execute
    from vectorize_pipelines.cli.showing import run_log
    from vectorize_pipelines.state.home import use_dagster_home

    settings, store = _opened()
    store.collection(name)  # raises what is worth no run
    use_dagster_home(settings)
    config = {
        "mode": "drain",
        "collection": name,
        "model": model_name(model),
        "dimension": dimension,
        "chunk_tokens": chunk_tokens,
        "overlap_tokens": overlap,
    }
    started = time.monotonic()
    with run_log(settings) as shown:
        result = execute(settings, "reembed_collection", "reembedding", config)
    return _report(settings, name, result, shown.stream, time.monotonic() - started, as_json=as_json)


@command.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Switch although the new generation is not what it should be.")
@_as_json
def switch(name: str, force: bool, as_json: bool) -> int:
    """Turn the readers of collection NAME to its new generation, in one step, if it holds what the old one does.

    Looks first whether both have the same rows, whether passages find themselves, and how many of the ten nearest are
    the same. The old one is kept up to date for the setting reembedding.keep_days, then dropped. Exits with 1 where
    the new one is not ready.
    """
    from vectorize_pipelines.encoders.configured import lease_configured
    from vectorize_pipelines.pipeline.aliases import reconcile_live
    from vectorize_pipelines.pipeline.checks.vectors import LARGEST_CANARY_BYTES
    from vectorize_pipelines.pipeline.generations import comparison, lifecycle
    from vectorize_pipelines.sources.rereading import ContentReader

    settings, store = _opened()
    read = ContentReader(settings, LARGEST_CANARY_BYTES).read
    with closing(_generations(settings)) as generations:
        _check_no_generation(generations, name)
        with generations.exclusive(name) as lock:
            live = reconcile_live(settings, store, generations, name, lock)
        new = lifecycle.next_of(generations, name)
        if live is None:
            raise SettingsError(f"{name!r} names none of its generations; `vectorize collections show {name}`")
        with lease_configured(settings, new.model, new.dimension) as encoder:
            found = comparison.compare(store, generations, live, new, encoder, read)
        problems = found.problems(settings.reembedding.least_recall)
        switched = force or not problems
        kept = live
        if switched:
            new, kept = lifecycle.switch(settings, store, generations, name, (live, new))
    outcome = {"collection": name, "switched": switched, **_compared(found), "problems": problems, **_turned(new, kept)}
    if as_json:
        click.echo(json.dumps(outcome, ensure_ascii=False, indent=2))
    else:
        click.echo(_in_words(found))
    for problem in problems:
        click.echo(f"{'warning' if switched else 'error'}: {new.physical}: {problem}", err=True)
    if switched:
        _say_turned(name, new, kept, as_json=as_json)
        return 0
    click.echo(
        f"not switched; `vectorize collections reembed {name}` completes it, --force switches all the same", err=True
    )
    return EXIT_NOT_READY


@command.command()
@click.argument("name")
@_as_json
def rollback(name: str, as_json: bool) -> None:
    """Turn the readers of collection NAME back to what they read before the last switch; nothing is lost."""
    from vectorize_pipelines.pipeline.generations import lifecycle

    settings, store = _opened()
    with closing(_generations(settings)) as generations:
        _check_no_generation(generations, name)
        live, kept = lifecycle.rollback(settings, store, generations, name)
    if as_json:
        click.echo(json.dumps({"collection": name, **_turned(live, kept)}, ensure_ascii=False, indent=2))
    _say_turned(name, live, kept, as_json=as_json)


@command.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_as_json
def drop(name: str, yes: bool, as_json: bool) -> int:
    """Delete the physical collection NAME; or, of the collection NAME, the generation that is not read.

    The last generation of a collection is all of it.
    """
    from vectorize_pipelines.pipeline.generations import lifecycle

    settings, store = _opened()
    with closing(_generations(settings)) as generations:
        damaged = name in store.damaged()
        physical = name if damaged else _to_drop(store, generations, name)
        names = [each.name for each in store.collections() if each.physical == physical and each.name != physical]
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError("say --yes: there is nobody to ask")
            what = f", which is what {', '.join(names)} names: all of it is deleted" if names else ""
            if not click.confirm(f"drop {physical}{what}?", err=True):
                click.echo("nothing is dropped", err=True)
                return EXIT_NOT_DROPPED
        lifecycle.drop(settings, store, generations, physical)
    if as_json:
        click.echo(json.dumps({"dropped": physical}, ensure_ascii=False, indent=2))
    else:
        click.echo(f"{physical} is dropped{', and with it all of ' + ', '.join(names) if names else ''}")
    return 0


def _opened() -> "tuple[Settings, VectorStore]":
    settings = enter_home()
    return settings, open_store(settings.store, settings.home, TableLocks(settings))


def _generations(settings: Settings) -> "Generations":
    from vectorize_pipelines.state.generations import Generations

    return Generations.open(settings)


def _list(as_json: bool) -> int:
    _, store = _opened()
    damaged = store.damaged()
    for physical, what in damaged.items():
        click.echo(f"error: {physical} is damaged: {what}; {DAMAGED_REMEDY.format(physical)}", err=True)
    rows = [{**asdict(each), "rows": store.count(each.name)} for each in store.collections()]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return EXIT_DAMAGED if damaged else 0
    if not rows and not damaged:
        click.echo("no collections yet; `vectorize ingest PATH` makes one", err=True)
        return 0
    lines = [(row["name"], f"{row['rows']} rows", str(row["dimension"]), row["model"], row["location"]) for row in rows]
    print_table(("collection", "size", "dimension", "model", "location"), lines, right=("size", "dimension"))
    return EXIT_DAMAGED if damaged else 0


def _check_no_generation(generations: "Generations", name: str) -> None:
    """Refuse a physical name. Raises `SettingsError`."""
    for each in generations.all():
        if each.physical == name != each.collection and each.state != "dropped":
            raise SettingsError(f"{name!r} is a generation of {each.collection!r}: give the name of the collection")


def _to_drop(store: "VectorStore", generations: "Generations", name: str) -> str:
    """Return the physical collection that is meant. Raises `SettingsError` where that is not certain."""
    known = [each for each in generations.of(name) if each.state != "dropped"]
    if not known:
        if any(each.physical == name for each in generations.all()):
            return name
        standing = store.collection(name)
        if standing.physical != name:
            raise SettingsError(f"{name!r} has one generation; to delete all of it, name it: {standing.physical}")
        return name
    others = [each.physical for each in known if each.state != "live"]
    if not others:
        raise SettingsError(
            f"{name!r} has one generation, which is read; to delete all of it, name it: {known[-1].physical}"
        )
    if len(others) > 1:
        raise SettingsError(f"{name!r} has {len(others)} generations that are not read; name one: " + ", ".join(others))
    return others[0]


def _shown(store: "VectorStore", generation: "Generation") -> dict[str, Any]:
    fields = asdict(generation)
    for name in ("created", "changed", "keep_until"):
        fields[name] = None if fields[name] is None else fields[name].isoformat()
    kept = ("collection", "physical", "state", "model", "dimension", "chunk_tokens", "overlap_tokens")
    shown = {name: fields[name] for name in (*kept, "created", "changed", "keep_until")}
    return {**shown, "state": generation.state.value, **_rows(store, generation.physical)}


def _rows(store: "VectorStore", physical: str) -> dict[str, Any]:
    from vectorize_pipelines.errors import CollectionNotFoundError

    try:
        partitions = store.count_by(physical, "partition")
    except CollectionNotFoundError:
        partitions = {}
    return {"rows": sum(partitions.values()), "partitions": dict(sorted(partitions.items()))}


def _compared(found: "GenerationComparison") -> dict[str, Any]:
    return {
        "rows_live": found.rows[0],
        "rows_new": found.rows[1],
        "missing": len(found.differences.missing),
        "extra": len(found.differences.extra),
        "changed": len(found.differences.changed),
        "partitions_differing": {day: list(counts) for day, counts in found.differences.days.items()},
        "canaries": found.canaries.sampled,
        "canary_recall": found.canaries.recall if found.canaries.sampled else None,
        "neighbour_overlap_at_10": found.overlap.overlap,
    }


def _in_words(found: "GenerationComparison") -> str:
    recall = (
        f"{found.canaries.recall:.3f} of {found.canaries.sampled}" if found.canaries.sampled else "none to look for"
    )
    overlap = "none to compare" if found.overlap.overlap is None else f"{found.overlap.overlap:.3f}"
    return (
        f"{found.live.physical}: {found.rows[0]} rows; {found.new.physical}: {found.rows[1]} rows, "
        f"{found.differences.total} differ; canary recall {recall}, neighbour overlap@10 {overlap}"
    )


def _turned(live: "Generation", kept: "Generation") -> dict[str, Any]:
    until = kept.keep_until
    return {
        "live": live.physical if live.state == "live" else kept.physical,
        "kept": kept.physical if live.state == "live" else None,
        "keep_until": None if until is None else until.isoformat(),
    }


def _say_turned(name: str, live: "Generation", kept: "Generation", *, as_json: bool) -> None:
    if not as_json:
        until = "" if kept.keep_until is None else f" until {kept.keep_until:%Y-%m-%d %H:%M} UTC"
        click.echo(f"{name} is {live.physical} ({live.model}) now; {kept.physical} is kept up to date{until}")


def _report(settings: Settings, name: str, result: Any, stream: Any, seconds: float, *, as_json: bool) -> int:
    from vectorize_pipelines.cli.reporting import report

    with closing(_generations(settings)) as generations:
        new = next((each for each in generations.of(name) if each.state in ("building", "ready")), None)
    about = {
        "collection": name,
        "physical": None if new is None else new.physical,
        "model": None if new is None else new.model,
        "state": None if new is None else new.state.value,
        "seconds": round(seconds, 2),
    }
    return report(result, stream, about, _say_reembedded, refused=("failed",), as_json=as_json)


def _say_reembedded(outcome: Mapping[str, Any]) -> None:
    from vectorize_pipelines.cli.showing import show_failures, skipped_in_words

    click.echo(
        f"{outcome['physical']}: {outcome['state']}; {outcome['chunks']} rows, {outcome['encoded']} encoded, "
        f"{skipped_in_words(outcome)}, {outcome['failed']} failed ({outcome['seconds']} s)"
    )
    show_failures(outcome["failures"])
