"""`vectorize models`: which models there are, fetching them and exporting them before they are needed."""

import json
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.home import enter_home

if TYPE_CHECKING:
    from vectorize_pipelines.encoders.inventory import KnownModel

EXIT_NOT_EXPORTED = 1


@click.group()
def command() -> None:
    """Show, fetch and export models."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the models as JSON.")
def list_models(as_json: bool) -> None:
    """List the models known here: configured, bundled, in the hub's caches, exported."""
    from vectorize_pipelines.encoders.inventory import known_models

    _print(known_models(enter_home()), as_json=as_json)


@command.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--json", "as_json", is_flag=True, help="Print the exports as JSON.")
def export(models: tuple[str, ...], as_json: bool) -> int:
    """Export models for running on the CPU, and measure them against their own vectors.

    Done once for each model and version, by one process at a time; a model that cannot be exported runs more slowly.
    Exits with 1 where one cannot.
    """
    settings = _verbose(enter_home())
    from vectorize_pipelines.encoders import describe_model, find_measured, load_encoder
    from vectorize_pipelines.encoders.configured import describe_options, load_options
    from vectorize_pipelines.encoders.inventory import describe_known

    options = load_options(settings)
    for model in models:  # refuse an unknown one before the work begins
        describe_model(model, **describe_options(settings))
    encoder = settings.encoder.model_copy(update={"device": "cpu", "engine": "auto"})
    on_cpu = settings.model_copy(update={"encoder": encoder})
    rows, usable = [], []
    for model in models:
        folders = find_measured(model, "cpu", **options)
        if folders:
            click.echo(f"{model}: exporting and measuring", err=True)
            load_encoder(model, "cpu", **options).close()
        rows.append(describe_known(on_cpu, model))
        usable.append(any(folder.exported and folder.precisions(options["precision"]) for folder in folders))
    _print(rows, as_json=as_json)
    return 0 if all(usable) else EXIT_NOT_EXPORTED


@command.command()
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@click.option("--json", "as_json", is_flag=True, help="Print the models as JSON.")
def prefetch(models: tuple[str, ...], as_json: bool) -> None:
    """Fetch models and make them ready, so that workers start without the network.

    Without MODEL those of the settings models.text and models.image. Each is loaded once on the configured device,
    which exports and measures it where the engine does that.
    """
    settings = _verbose(enter_home())
    from vectorize_pipelines.core.items import Modality
    from vectorize_pipelines.encoders import describe_model, load_encoder, load_tokenizer
    from vectorize_pipelines.encoders.configured import describe_options, load_options
    from vectorize_pipelines.encoders.inventory import describe_known

    options, describing = load_options(settings), describe_options(settings)
    wanted = models or tuple(dict.fromkeys((settings.models.text, settings.models.image)))
    specs = {model: describe_model(model, **describing) for model in wanted}
    for model, spec in specs.items():
        click.echo(f"{model}: making ready", err=True)
        load_encoder(model, settings.encoder.device, settings.encoder.engine, **options).close()
        if Modality.IMAGE not in spec.modalities:
            load_tokenizer(model, **describing)
    _print([describe_known(settings, model) for model in wanted], as_json=as_json)


def _verbose(settings: Settings) -> Settings:
    """Show on stderr what takes long: fetching, exporting, measuring."""
    logging.getLogger("vectorize_pipelines").setLevel(settings.log_level)
    return settings


def _print(models: "list[KnownModel]", *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(known) for known in models], ensure_ascii=False, indent=2))
        return
    for known in models:
        _print_model(known)


def _print_model(known: "KnownModel") -> None:
    configured = f"  ({', '.join(known.configured)})" if known.configured else ""
    click.secho(f"{known.model}{configured}", bold=True)
    if known.origin == "remote":
        dimension = "" if known.dimension is None else f", {known.dimension} dimensions"
        click.echo(f"     remote: {known.location or 'OpenAI'}{dimension}")
        click.echo(f"     {known.reason}")
        return
    if known.location is not None:
        click.echo(f"     {known.origin}, {_mebibytes(known.size)}: {known.location}")
    if known.engine is not None:
        precision = known.precision or "precision measured at its first use"
        memory = f"; loading takes about {_mebibytes(known.memory)}" if known.memory is not None else ""
        click.echo(f"     {known.engine} on {known.device}, {precision}{memory}")
    elif known.reason:
        click.echo(f"     {known.reason}")
    if known.export is not None:
        click.echo(f"     exported, {_mebibytes(known.export_size)}: {known.export}")
    for each in known.measured:
        equal = "equal" if each["equal"] else "NOT equal, not used"
        click.echo(
            f"     {each['part']} in {each['precision']}: {equal} "
            f"(mean cosine {each['mean_cosine']:.6f}, worst {each['worst_cosine']:.6f}; {each['machine']})"
        )


def _mebibytes(count: int | None) -> str:
    return f"{(count or 0) / 2**20:,.0f} MiB"
