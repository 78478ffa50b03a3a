"""`vectorize search`: the passages or images nearest to a text or an image. Does not import Dagster."""

import json
import shutil
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.records import RECORD_FIELDS, record_schema
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.filters import Equal, Filter, Or, Scalar, all_of

_OWN_FIELDS = frozenset(RECORD_FIELDS) - {"metadata"}


@click.command()
@click.argument("query", required=False)
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Search by an image instead of a text, among what was embedded with a model of images.",
)
@click.option(
    "--collection",
    help="Collection to search.  [default: the setting corpus.collection, for an image gallery.collection]",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=5, show_default=True, help="Hits to show.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Only records with this value; a record's own field or one of its metadata. Several must all hold.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the hits as JSON.")
def command(
    query: str | None, image: Path | None, collection: str | None, limit: int, filters: tuple[str, ...], as_json: bool
) -> None:
    """Find the passages or images nearest to QUERY, best first, with their cosine similarity.

    A collection of images is searched by a text, too: `vectorize search --collection gallery "a red car"`.
    """
    if image is not None and query is not None:
        raise click.UsageError("give QUERY or --image, not both")
    content = image if image is not None else (query or "")
    if isinstance(content, str) and not content.strip():
        raise click.BadParameter("there is nothing to search for", param_hint="QUERY")
    where = all_of([parse_filter(text) for text in filters])
    settings = load_settings()
    store = open_store(settings.store, settings.home)
    default = settings.corpus if image is None else settings.gallery
    found = store.collection(collection or default.collection)

    from vectorize_pipelines.encoders.configured import lease_configured

    with lease_configured(settings, found.model, found.dimension) as encoder:
        try:
            vectors, errors = encoder.encode_each([content], "query")
        except ItemError as error:
            raise click.UsageError(f"{found.name}: {error}") from error
    if errors:
        raise click.UsageError(f"{content}: {errors[0]}")
    # Not by its alias, which may have been turned to another model's vectors since.
    hits = store.search(found.physical, vectors[0], limit, where).to_pylist()
    for hit in hits:
        hit["metadata"] = json.loads(hit["metadata"])
    if as_json:
        click.echo(json.dumps([_as_json(hit) for hit in hits], ensure_ascii=False, indent=2))
    elif hits:
        for rank, hit in enumerate(hits, 1):
            _print(rank, hit)
    else:
        click.echo("nothing found", err=True)


def parse_filter(text: str) -> Filter:
    """`language=en`, `page=3`, `metadata.year=2024`; a number in metadata matches as a number and as text.

    A time without a zone is in UTC. Raises `click.BadParameter`.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not FIELD=VALUE, such as language=en", param_hint="--filter")
    if name in _OWN_FIELDS:
        return Equal(name, _own_value(name, value))
    field = name if name.startswith("metadata.") else f"metadata.{name}"
    readings = _readings(value)
    return Or(tuple(Equal(field, reading) for reading in readings)) if len(readings) > 1 else Equal(field, value)


def _own_value(name: str, value: str) -> Scalar:
    kind = str(record_schema(1).field(name).type)
    try:
        if kind.startswith("int"):
            return int(value)
        return _time(value) if kind.startswith("timestamp") else value
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a value of {name} ({kind})", param_hint="--filter") from None


def _time(value: str) -> datetime:
    """A time without a zone is one in UTC, as the days of the partitions are."""
    time = datetime.fromisoformat(value)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _readings(value: str) -> list[Scalar]:
    """What a value given on the command line may mean: the text, and the JSON number or boolean."""
    try:
        parsed = json.loads(value)
    except ValueError:
        return [value]
    return [value, parsed] if isinstance(parsed, bool | int | float) else [value]


def _as_json(hit: dict[str, Any]) -> dict[str, Any]:
    fields = {name: hit[name] for name in RECORD_FIELDS}
    for name, value in fields.items():
        if isinstance(value, datetime):
            fields[name] = value.isoformat()
    return {"score": round(float(hit["score"]), 6), **fields}


def _print(rank: int, hit: dict[str, Any]) -> None:
    place = hit["uri"] or hit["source_id"]
    if hit["page"] is not None:
        place += f", page {hit['page']}"
    if hit["metadata"].get("section"):
        place += f" › {hit['metadata']['section']}"
    if hit["metadata"].get("row") is not None:
        place += f", row {hit['metadata']['row']}"
    width = min(shutil.get_terminal_size().columns, 120)
    click.secho(f"{rank}. {hit['score']:.3f}  {place}", bold=True)
    if hit["text"] is None:
        return
    passage = textwrap.wrap(" ".join(hit["text"].split()), width - 5, max_lines=4, placeholder=" …")
    click.echo(textwrap.indent("\n".join(passage), "     "))
