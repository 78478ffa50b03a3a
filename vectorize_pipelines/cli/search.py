"""`vectorize search`: the passages or images nearest to a text or an image. Does not import Dagster."""

import shutil
import textwrap
from pathlib import Path
from typing import Any

import click

from vectorize_pipelines.documents.types import ROW_NUMBER
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.sources.content import read_content
from vectorize_pipelines.state.home import enter_home
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.filters.comparisons import InvalidFilterError
from vectorize_pipelines.stores.filters.expressions import And, Filter, Not, Or, all_of
from vectorize_pipelines.stores.filters.operands import in_metadata
from vectorize_pipelines.stores.filters.parsing import parse_filter
from vectorize_pipelines.stores.hits import hits_as_json, json_text


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
    help="Only records with this value; a record's own field or one of its metadata (metadata.id, metadata.page, … "
    "where a column of a table has the name of a record's own field). Or an expression, such as "
    "'price >= 10 and not language in (en, zh)', with and, or, not, =, !=, <, <=, >, >=, in, prefix and exists. "
    "Several must all hold.",
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
    if image is None and not (query or "").strip():
        raise click.BadParameter("there is nothing to search for", param_hint="QUERY")
    where = all_of([_filter(text) for text in filters])
    settings = enter_home()
    content = (query or "") if image is None else _image(image, settings.images.max_file_bytes)
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
        raise click.UsageError(f"{query if image is None else image}: {errors[0]}")
    # Not by its alias, which may have been turned to another model's vectors since.
    hits = hits_as_json(store.search(found.physical, vectors[0], limit, where))
    if as_json:
        click.echo(json_text(hits, indent=2))
    elif hits:
        for rank, hit in enumerate(hits, 1):
            _print(rank, hit)
    else:
        click.echo(f"nothing found{_own_fields_said(where)}", err=True)


def _image(file: Path, limit: int) -> bytes:
    """Return the image's bytes, a little more than the limit where there are more. Raises `click.UsageError`."""
    try:
        return read_content(str(file), limit + 1)
    except ItemError as error:
        raise click.UsageError(f"{file}: {error}") from None


def _filter(text: str) -> Filter:
    """Parse the filter. Raises `click.BadParameter`."""
    try:
        return parse_filter(text)
    except InvalidFilterError as error:
        raise click.BadParameter(f"{text!r}: {error}", param_hint="--filter") from None


def _own_fields_said(where: Filter | None) -> str:
    """Return what to say of a filter on a record's own fields, which a column of a table may be called like."""
    own = sorted(_own_fields(where))
    meant = ", ".join(f"metadata.{name}" for name in own)
    return f"; the filter names the record's own {', '.join(own)}: a column of a table is {meant}" if own else ""


def _own_fields(where: Filter | None) -> set[str]:
    match where:
        case None:
            return set()
        case Not():
            return _own_fields(where.filter)
        case And() | Or():
            return set().union(*map(_own_fields, where.filters))
    return set() if in_metadata(where.field) else {where.field}


def _print(rank: int, hit: dict[str, Any]) -> None:
    place = hit["uri"] or hit["source_id"]
    if hit["page"] is not None:
        place += f", page {hit['page']}"
    if hit["metadata"].get("section"):
        place += f" › {hit['metadata']['section']}"
    row = next((hit["metadata"][name] for name in reversed(ROW_NUMBER) if name in hit["metadata"]), None)
    if row is not None:
        place += f", row {row}"
    width = min(shutil.get_terminal_size().columns, 120)
    click.secho(f"{rank}. {hit['score']:.3f}  {place}", bold=True)
    if hit["text"] is None:
        return
    passage = textwrap.wrap(" ".join(hit["text"].split()), width - 5, max_lines=4, placeholder=" …")
    click.echo(textwrap.indent("\n".join(passage), "     "))
