"""`vectorize doctor`: what is configured, what answers, what is missing and how to get it. Imports no Dagster."""

import importlib.util
import json
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import click

from vectorize_pipelines import home
from vectorize_pipelines.errors import ModelNotFetchedError, SettingsError, VectorizeError
from vectorize_pipelines.settings import LEGACY_WITHOUT_EFFECT, Settings, load_settings

if TYPE_CHECKING:
    from vectorize_pipelines.pipeline.folder import Comparison

CONNECT_SECONDS = 3.0
LEAST_FREE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `off` is what is not configured, which is nobody's fault; `remedy` says what to do."""

    name: str
    status: Literal["ok", "off", "warning", "error"]
    detail: str
    remedy: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(as_json: bool) -> int:
    """Say what is configured, what answers, what is missing and how to get it. Exits with 1 where something fails."""
    findings = list(examine())
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        for finding in findings:
            colour = {"ok": "green", "off": "bright_black", "warning": "yellow", "error": "red"}[finding.status]
            click.echo(f"{click.style(f'{finding.status:8}', fg=colour)}{finding.name:14} {finding.detail}")
            if finding.remedy:
                click.echo(f"{'':22} → {finding.remedy}")
    return 1 if any(finding.status == "error" for finding in findings) else 0


def examine() -> Iterator[Finding]:
    """Every finding, in the order in which a new installation has to be put right."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} processors")
    try:
        settings = load_settings()
    except SettingsError as error:
        yield Finding("settings", "error", str(error), "correct the setting; docs/settings.md lists all of them")
        return
    yield Finding("settings", "ok", "environment, .env and vectorize.yaml agree with the schema")
    for name in sorted(LEGACY_WITHOUT_EFFECT.keys() & os.environ.keys()):
        yield Finding("settings", "warning", f"{name} has no effect", LEGACY_WITHOUT_EFFECT[name])
    for name, check in _CHECKS:
        try:
            yield from check(settings)
        except VectorizeError as error:
            yield Finding(name, "error", str(error))


def _home(settings: Settings) -> Iterator[Finding]:
    dagster_home = home.dagster_home(settings)
    other = os.environ.get("DAGSTER_HOME")
    if other and Path(other).absolute() != dagster_home:
        yield Finding(
            "home",
            "warning",
            f"DAGSTER_HOME is {other}; the commands of this project use {dagster_home}, bare `dagster` commands do not",
            f"export DAGSTER_HOME={dagster_home}, or unset it",
        )
    free = shutil.disk_usage(settings.home).free
    detail = f"{settings.home}, {free / 2**30:.1f} GiB free"
    if free < LEAST_FREE_BYTES:
        yield Finding("home", "warning", detail, "free some space, or set VECTORIZE_HOME to a larger disk")
    else:
        yield Finding("home", "ok", detail)


def _store(settings: Settings) -> Iterator[Finding]:
    from vectorize_pipelines.stores import open_store

    store = open_store(settings.store, settings.home)
    collections = store.collections()
    names = ", ".join(f"{each.name} ({store.count(each.name)} rows)" for each in collections)
    yield Finding("store", "ok", f"{settings.store.kind}: {names or 'no collections yet'}")


def _text_model(settings: Settings) -> Iterator[Finding]:
    try:
        yield _model("model", settings, settings.models.text, settings.models.dimension)
    except ModelNotFetchedError as error:
        yield Finding("model", "warning", str(error), f"`vectorize models prefetch {settings.models.text}`")


def _image_model(settings: Settings) -> Iterator[Finding]:
    try:
        yield _model("image model", settings, settings.models.image, None)
    except ModelNotFetchedError as error:
        yield Finding("image model", "off", str(error))


def _model(name: str, settings: Settings, model: str, dimension: int | None) -> Finding:
    """What would run a model, why, and whether there is room for it. Loads, fetches and exports nothing."""
    from vectorize_pipelines.encoders import describe_model, forecast_load
    from vectorize_pipelines.encoders.configured import load_options
    from vectorize_pipelines.encoders.devices import free_memory

    options = load_options(settings)
    spec = describe_model(model, dimension=dimension, cache_directory=options["cache_directory"], fetch=False)
    choice, needed = forecast_load(model, settings.encoder.device, settings.encoder.engine, **options)
    precision = f"in {choice.precision}" if choice.precision else "in a precision not measured yet"
    detail = (
        f"{spec.fingerprint}; {choice.engine} on {choice.device} {precision}: {choice.reason} "
        f"Loading takes about {_mebibytes(needed)}."
    )
    limit = settings.encoder.memory_bytes
    if limit is not None and needed > limit:
        return Finding(name, "error", f"{detail} encoder.memory_bytes allows {_mebibytes(limit)}.", "raise it")
    free = free_memory(choice.device)
    if needed > free:
        remedy = "end what else uses the memory, choose a smaller model, or another encoder.device"
        return Finding(name, "warning", f"{detail} There are {_mebibytes(free)}.", remedy)
    return Finding(name, "ok", detail)


def _memory(settings: Settings) -> Iterator[Finding]:
    from vectorize_pipelines.encoders.devices import free_memory, resolve_device

    device = resolve_device(settings.encoder.device)
    limit = settings.encoder.memory_bytes
    allowed = "what there is" if limit is None else _mebibytes(limit)
    yield Finding(
        "model memory",
        "ok",
        f"{_mebibytes(free_memory(device))} to spare on {device}; models may take {allowed}, and a process keeps at "
        f"most {settings.encoder.max_loaded} loaded",
    )


def _gpus(settings: Settings) -> Iterator[Finding]:
    from vectorize_pipelines.encoders.devices import cuda_devices

    names = cuda_devices()
    if not names:
        yield Finding("gpus", "off", "torch sees none")
        return
    listed = ", ".join(f"cuda:{number} {name}" for number, name in enumerate(names))
    shards = "; runs with the tag vectorize/shard go round them" if len(names) > 1 else ""
    yield Finding("gpus", "ok", f"{listed}{shards}")


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _corpus(settings: Settings) -> Iterator[Finding]:
    from vectorize_pipelines.pipeline.documents import compare_corpus

    yield from _folder("corpus", settings.corpus.path, lambda: compare_corpus(settings))


def _gallery(settings: Settings) -> Iterator[Finding]:
    from vectorize_pipelines.pipeline.images import compare_gallery

    path = settings.gallery.path
    if path is None:
        yield Finding("gallery", "off", "not configured", "VECTORIZE_GALLERY__PATH=/a/folder/of/images names a folder")
        return
    yield from _folder("gallery", path, lambda: compare_gallery(settings))


def _folder(name: str, path: str, compare: "Callable[[], Comparison]") -> Iterator[Finding]:
    try:
        comparison = compare()
    except ModelNotFetchedError as error:
        yield Finding(name, "warning", f"{path}: {error}", "`vectorize models prefetch`, or the first run, fetches it")
        return
    failed = sum(1 for entry in comparison.unchanged if entry.error_class)
    detail = (
        f"the asset's folder {path}: {len(comparison.unchanged)} files up to date, "
        f"{len(comparison.changed)} to read, "
        f"{len(comparison.vanished)} gone"
    )
    if failed or comparison.unreadable:
        yield Finding(
            name,
            "warning",
            f"{detail}; {failed} could not be embedded, {len(comparison.unreadable)} could not be looked at",
            f"`vectorize ingest {path}` lists them with their reasons",
        )
    else:
        yield Finding(name, "ok", detail)
    scheme = urlsplit(path).scheme
    package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}.get(scheme)
    if package and importlib.util.find_spec(package) is None:
        yield Finding(name, "error", f"{scheme}:// needs the package {package}", f"`uv pip install {package}`")


def check_kafka(settings: Settings) -> Iterator[Finding]:
    """Whether the cluster answers and has the topics as they should be. Raises `KafkaError`, `SettingsError`."""
    if settings.kafka.bootstrap_servers is None:
        yield Finding("kafka", "off", "not configured", "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS=host:9092 names a cluster")
        return
    from vectorize_pipelines.messaging.topics import check_offset_retention, check_topics

    where = f"{settings.kafka.bootstrap_servers} over {settings.kafka.security_protocol}"
    quick = settings.kafka.model_copy(update={"request_seconds": CONNECT_SECONDS})
    problems = check_topics(quick)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        yield Finding("kafka", "error", f"{where}: {problems[0]}{more}", "`vectorize topics check` says all of it")
    else:
        yield Finding(
            "kafka", "ok", f"{where} answers; the topics {settings.kafka.topic_prefix}.… are as they should be"
        )
    for warning in check_offset_retention(quick):
        yield Finding("kafka", "warning", warning)


def _redis(settings: Settings) -> Iterator[Finding]:
    if settings.redis.url is None:
        yield Finding("redis", "off", "not configured; SQLite files keep what is shared")
        return
    address = urlsplit(settings.redis.url.get_secret_value())
    yield _connect("redis", address.hostname or "localhost", address.port or 6379)


def _connect(name: str, host: str, port: int) -> Finding:
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return Finding(name, "error", f"{host}:{port}: {error}", "start it, or correct its address in the settings")
    return Finding(name, "ok", f"{host}:{port} answers")


def _alerts(settings: Settings) -> Iterator[Finding]:
    if settings.alerts.webhook_url is None:
        yield Finding("alerts", "off", "nobody hears of failed runs", "VECTORIZE_ALERTS__WEBHOOK_URL names a webhook")
    else:
        yield Finding("alerts", "ok", "failed runs are posted to the webhook while the daemon runs")


_CHECKS: tuple[tuple[str, Callable[[Settings], Iterator[Finding]]], ...] = (
    ("home", _home),
    ("store", _store),
    ("model", _text_model),
    ("image model", _image_model),
    ("model memory", _memory),
    ("gpus", _gpus),
    ("corpus", _corpus),
    ("gallery", _gallery),
    ("kafka", check_kafka),
    ("redis", _redis),
    ("alerts", _alerts),
)
