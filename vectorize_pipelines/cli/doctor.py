"""`vectorize doctor`: what is configured, what answers, what is missing and how to get it. Imports no Dagster."""

import contextlib
import json
import os
import platform
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from vectorize_pipelines.cli.tables import Cell, print_table
from vectorize_pipelines.core import extras
from vectorize_pipelines.errors import LedgerError, MissingExtraError, ModelNotFetchedError, VectorizeError
from vectorize_pipelines.settings import LEGACY_WITHOUT_EFFECT, Settings, load_settings
from vectorize_pipelines.state import home
from vectorize_pipelines.state.dagster_databases import (
    CHECK_SECONDS,
    DATABASES,
    Condition,
    condition,
    damaged_among,
)
from vectorize_pipelines.state.damage import check_database, explain, left_aside

if TYPE_CHECKING:
    from vectorize_pipelines.pipeline.files.comparison import FolderComparison

CONNECT_SECONDS = 3.0
LEAST_FREE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `off` is what is not configured or not used, nobody's fault; `remedy` says what to do."""

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
        print_table(("state", "part", "finding"), _rows(findings))
    return 1 if any(finding.status == "error" for finding in findings) else 0


def _rows(findings: Iterable[Finding]) -> Iterator[tuple[Cell, ...]]:
    colours = {"ok": "green", "off": "bright_black", "warning": "yellow", "error": "red"}
    for finding in findings:
        yield (finding.status, colours[finding.status]), finding.name, finding.detail
        if finding.remedy:
            yield "", "", f"→ {finding.remedy}"


def examine() -> Iterator[Finding]:
    """Every finding, in the order in which a new installation has to be put right."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} processors")
    try:
        settings = load_settings()
    except Exception as error:  # noqa: BLE001 -- whatever is broken, it is for the doctor to say
        said = str(error) if isinstance(error, VectorizeError) else f"{type(error).__name__}: {error}"
        yield Finding("settings", "error", said, "correct the setting; docs/settings.md lists all of them")
        return
    yield Finding("settings", "ok", "environment, .env and vectorize.yaml agree with the schema")
    for name in sorted(LEGACY_WITHOUT_EFFECT.keys() & os.environ.keys()):
        yield Finding("settings", "warning", f"{name} has no effect", LEGACY_WITHOUT_EFFECT[name])
    for name, check in _CHECKS:
        try:
            yield from check(settings)
        except Exception as error:  # noqa: BLE001 -- the other findings count whatever this one is
            yield _failed(name, settings, error)


def _failed(name: str, settings: Settings, error: Exception) -> Finding:
    known = error if isinstance(error, VectorizeError) else explain(error, settings.home)
    if known is not None:
        return Finding(name, "error", str(known))
    place = traceback.extract_tb(error.__traceback__)[-1]
    detail = f"the check failed: {type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    return Finding(name, "error", detail, "this is a defect of the check, or of what it looks at: please report it")


def _extras(settings: Settings) -> Iterator[Finding]:
    """Which optional parts are installed, and what installs the others; what the settings need is said by its check."""
    del settings
    there = [name for name in extras.EXTRAS if extras.is_installed(name)]
    absent = [name for name in extras.EXTRAS if name not in there]
    remedy = extras.install_command(",".join(absent)) if absent else ""
    detail = f"installed: {', '.join(there) or 'none'}" + (f"; not installed: {', '.join(absent)}" if absent else "")
    yield Finding("extras", "ok" if there else "off", detail, f"`{remedy}` installs these" if remedy else "")


def _home(settings: Settings) -> Iterator[Finding]:
    home.keep_private(settings)
    dagster_home = home.dagster_home(settings)
    other = os.environ.get("DAGSTER_HOME")
    if other and Path(other).absolute() != dagster_home:
        yield Finding(
            "home",
            "warning",
            f"DAGSTER_HOME is {other}; the commands of this project use {dagster_home}, bare `dagster` commands do not",
            f"export DAGSTER_HOME={dagster_home}, or unset it",
        )
    others = home.open_to_others(settings)
    if others:
        yield Finding(
            "home",
            "warning",
            f"other users of this machine can look into {', '.join(map(str, others))}",
            f"chmod -R go= {settings.home} as its owner; where it is shared on purpose, VECTORIZE_HOME_SHARED=true",
        )
    yield from _put_aside(settings)
    free = shutil.disk_usage(settings.home).free
    detail = f"{settings.home}, {free / 2**30:.1f} GiB free"
    if free < LEAST_FREE_BYTES:
        yield Finding("home", "warning", detail, "free some space, or set VECTORIZE_HOME to a larger disk")
    else:
        yield Finding("home", "ok", detail)


def _confinement(settings: Settings) -> Iterator[Finding]:
    del settings
    from vectorize_pipelines.sandbox.check import missing_confinement
    from vectorize_pipelines.sandbox.process import describe

    try:
        lacking = missing_confinement()
    except RuntimeError as error:
        yield Finding("confinement", "error", str(error), "neither documents nor images can be read until it starts")
        return
    if lacking:
        remedy = (
            "run it on Linux 5.13 or later on x86_64 or aarch64, in a container that allows seccomp and Landlock"
            if lacking.keys() - {"project"}
            else "keep the project and VECTORIZE_HOME apart from the folders of Python and of the system's libraries"
        )
        yield Finding("confinement", "warning", describe(lacking), remedy)
    else:
        yield Finding("confinement", "ok", "parsers and image codecs have no network, and see no files")


def _put_aside(settings: Settings) -> Iterator[Finding]:
    left = [path for folder in home.put_aside_in(settings) for path in left_aside(folder)]
    if left:
        size = sum(path.stat().st_size for path in left)
        names = ", ".join(map(str, left))
        yield Finding(
            "home",
            "warning",
            f"{len(left)} files were put aside and made again, {_mebibytes(size)}: {names}",
            "find out what damaged them (the disk, a power cut, another version), then delete them",
        )


def _dagster(settings: Settings) -> Iterator[Finding]:
    from vectorize_pipelines.state.database import dagster_storage

    storage = dagster_storage(home.dagster_home(settings))
    if not isinstance(storage, Path):
        yield Finding("dagster", "ok", "runs are kept in a server's database")
        return
    conditions = [condition(storage / name) for name in DATABASES]
    damaged = damaged_among(storage)
    if damaged is not None:
        raise damaged
    if all(each is Condition.MISSING for each in conditions):
        yield Finding("dagster", "off", "no runs yet: the first command that has one makes the databases")
    elif all(each is Condition.WHOLE for each in conditions):
        yield Finding("dagster", "ok", f"runs, events and schedules in {storage} can be read")
    else:
        found = ", ".join(f"{name} is {each}" for name, each in zip(DATABASES, conditions, strict=True))
        yield Finding("dagster", "warning", f"in {storage} {found}", "the next `vectorize ingest` mends that")


def _ledger(settings: Settings) -> Iterator[Finding]:
    from vectorize_pipelines.state.database import REMEDY, database_url, shown_database
    from vectorize_pipelines.state.ledger import RequestLedger

    url = database_url(settings)
    with contextlib.closing(RequestLedger.open(settings)):
        pass
    file = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
    found = check_database(file, CHECK_SECONDS) if file is not None else None
    if found is not None:
        raise LedgerError(f"the database of requests, {file} is damaged ({found}); {REMEDY}")
    yield Finding("ledger", "ok", f"requests and versions in {shown_database(url)}")


def _store(settings: Settings) -> Iterator[Finding]:
    from vectorize_pipelines.cli.collections import DAMAGED_REMEDY
    from vectorize_pipelines.core.urls import shown_url
    from vectorize_pipelines.state.table_locks import ONE_MACHINE, TableLocks
    from vectorize_pipelines.stores import open_store

    locks = TableLocks(settings)
    store = open_store(settings.store, settings.home, locks)
    damaged = store.damaged()
    collections = [each for each in store.collections() if each.physical not in damaged]
    names = ", ".join(f"{each.name} ({store.count(each.name)} rows)" for each in collections)
    yield Finding("store", "ok", f"{settings.store.kind}: {names or 'no collections yet'}")
    if store.needs_table_locks and locks.is_of_one_machine():
        remedy = "where others shall write too, have all of them use one PostgreSQL: docs/operations.md"
        yield Finding("store", "ok", f"{shown_url(settings.store.url or '')}: {ONE_MACHINE}", remedy)
    elif store.needs_table_locks:
        yield Finding("store", "ok", f"{shown_url(settings.store.url or '')}: its writers take turns by PostgreSQL")
    for physical, what in damaged.items():
        yield Finding("store", "error", f"{physical} is damaged: {what}", DAMAGED_REMEDY.format(physical))
    for each in collections:
        if store.is_doubtful(each.name):
            yield Finding(
                "store",
                "warning",
                f"{each.name} fell back to an earlier version, and may lack rows that were acknowledged",
                "`vectorize ingest` compares it with its files; replay the days of its requests (docs/operations.md)",
            )


def _text_model(settings: Settings) -> Iterator[Finding]:
    try:
        yield _model("model", settings, settings.models.text, settings.models.dimension)
    except ModelNotFetchedError as error:
        yield Finding("model", "warning", str(error), f"`vectorize models prefetch {settings.models.text}`")


def _image_model(settings: Settings) -> Iterator[Finding]:
    try:
        yield _model("image model", settings, settings.models.image, None)
    except (ModelNotFetchedError, MissingExtraError) as error:
        yield Finding("image model", "off", str(error))


def _model(name: str, settings: Settings, model: str, dimension: int | None) -> Finding:
    """Say what would run a model, why, and whether there is room for it. Loads, fetches and exports nothing."""
    from vectorize_pipelines.encoders import describe_model, forecast_load
    from vectorize_pipelines.encoders.configured import describe_options, load_options
    from vectorize_pipelines.encoders.hardware.devices import free_memory

    options = load_options(settings)
    spec = describe_model(model, dimension=dimension, fetch=False, **describe_options(settings))
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
    from vectorize_pipelines.encoders.hardware.devices import free_memory, resolve_device

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
    from vectorize_pipelines.encoders.hardware.devices import cuda_devices

    lacking = extras.missing("a GPU", "torch")
    if lacking is not None:
        yield Finding("gpus", "off", lacking)
        return
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
    from vectorize_pipelines.pipeline.files.documents import compare_corpus

    path = settings.corpus.path
    if path is None:
        yield Finding("corpus", "off", "not configured", "VECTORIZE_CORPUS__PATH=/a/folder/of/documents names a folder")
        return
    yield from _folder("corpus", path, lambda: compare_corpus(settings))


def _gallery(settings: Settings) -> Iterator[Finding]:
    from vectorize_pipelines.pipeline.files.images import compare_gallery

    path = settings.gallery.path
    if path is None:
        yield Finding("gallery", "off", "not configured", "VECTORIZE_GALLERY__PATH=/a/folder/of/images names a folder")
        return
    yield from _folder("gallery", path, lambda: compare_gallery(settings))


def _folder(name: str, path: str, compare: "Callable[[], FolderComparison]") -> Iterator[Finding]:
    try:
        comparison = compare()
    except ModelNotFetchedError as error:
        yield Finding(name, "warning", f"{path}: {error}", "`vectorize models prefetch`, or the first run, fetches it")
        return
    detail = (
        f"the asset's folder {path}: {comparison.unchanged} files up to date, {comparison.changed} to read, "
        f"{comparison.vanished} gone"
    )
    if comparison.failed or comparison.unreadable or comparison.incomplete:
        yield Finding(
            name,
            "warning",
            f"{detail}; {comparison.failed} could not be embedded, {comparison.incomplete} are incomplete, "
            f"{comparison.unreadable} could not be looked at",
            f"`vectorize ingest {path}` lists them with their reasons",
        )
    else:
        yield Finding(name, "ok", detail)


def check_kafka(settings: Settings) -> Iterator[Finding]:
    """Look whether the cluster answers, and has the topics as they should be. Raises `KafkaError`, `SettingsError`."""
    if settings.kafka.bootstrap_servers is None:
        yield Finding("kafka", "off", "not configured", "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS=host:9092 names a cluster")
        return
    from vectorize_pipelines.kafka.topics import check_offset_retention, check_topics

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
    """Whether the server answers, what it holds, and whether its memory is bounded.

    Raises `SettingsError`, `MissingExtraError` and `RedisUnavailableError`.
    """
    if settings.redis.url is None:
        yield Finding("redis", "off", "not configured; the database and SQLite files keep what is shared")
        return
    from vectorize_pipelines.state.redis_connection import ping_redis, redis_address

    version, memory = ping_redis(settings, CONNECT_SECONDS)
    held = ["the use of API keys", "heartbeats of workers"]
    if settings.providers.answers_kept_seconds:
        held.append("answers of models")
    if settings.cache.enabled != "off":
        held.append("the embedding cache")
    limit = f"{memory.limit_bytes:,} bytes, {memory.policy}" if memory.limit_bytes else "no limit"
    detail = f"{redis_address(settings)} answers (Redis {version}, maxmemory: {limit}); it holds {', '.join(held)}"
    if memory.policy.startswith("allkeys-"):
        remedy = "its policy may also evict what must stay, such as waiting runs: set maxmemory-policy to volatile-lru"
        yield Finding("redis", "warning", detail, remedy)
        return
    few = settings.cache.enabled != "off" and not memory.evicts
    remedy = "with a maxmemory and the maxmemory-policy volatile-lru it keeps more vectors than cache.max_bytes"
    yield Finding("redis", "ok", detail, remedy if few else "")


def _keys(settings: Settings) -> Iterator[Finding]:
    """What the file of API keys holds; not whether their provider takes them. Raises `SettingsError`."""
    from vectorize_pipelines.providers.key_file import read_keys

    keys = read_keys(settings.providers.keys_file).keys
    if not keys:
        yield Finding("keys", "off", f"no API keys: remote models cannot be used ({settings.providers.keys_file})")
        return
    providers = ", ".join(sorted({key.provider for key in keys}))
    detail = f"{len(keys)} API keys ({providers}) in {settings.providers.keys_file}"
    yield Finding("keys", "ok", detail, "`vectorize keys check` asks their providers")


def _alerts(settings: Settings) -> Iterator[Finding]:
    if settings.alerts.webhook_url is None:
        yield Finding("alerts", "off", "nobody hears of failed runs", "VECTORIZE_ALERTS__WEBHOOK_URL names a webhook")
    else:
        yield Finding("alerts", "ok", "failed runs are posted to the webhook while the daemon runs")


_CHECKS: tuple[tuple[str, Callable[[Settings], Iterator[Finding]]], ...] = (
    ("extras", _extras),
    ("home", _home),
    ("confinement", _confinement),
    ("dagster", _dagster),
    ("ledger", _ledger),
    ("store", _store),
    ("model", _text_model),
    ("image model", _image_model),
    ("model memory", _memory),
    ("gpus", _gpus),
    ("corpus", _corpus),
    ("gallery", _gallery),
    ("kafka", check_kafka),
    ("redis", _redis),
    ("keys", _keys),
    ("alerts", _alerts),
)
