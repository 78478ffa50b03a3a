"""`vectorize collections`: what the store holds."""

import json
from dataclasses import asdict

import click

from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.stores import open_store


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the collections as JSON.")
def command(as_json: bool) -> None:
    """List the collections: name, model, dimension, rows, and where they lie."""
    settings = load_settings()
    store = open_store(settings.store, settings.home)
    rows = [{**asdict(each), "rows": store.count(each.name)} for each in store.collections()]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    if not rows:
        click.echo("no collections yet; `vectorize ingest PATH` makes one", err=True)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(
            f"{row['name']:{width}}  {row['rows']:>9} rows  {row['dimension']:>5}  {row['model']}  {row['location']}"
        )
