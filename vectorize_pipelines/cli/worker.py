"""`vectorize worker`: a process of this host that takes runs from queues and keeps its models loaded between them."""

import logging
import os
import sys
from collections.abc import Mapping
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import click

from vectorize_pipelines.core.worker_queues import QUEUES
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.settings import LEGACY_NAMES, LEGACY_WITHOUT_EFFECT, Settings, load_settings, variable_name
from vectorize_pipelines.state import home

#: The names of the earlier worker service, with and without what all settings begin with.
_SHORT, _LONG = "WORKER_", "VECTORIZE_WORKER_"
_ENV_FILE = Path("worker.env")
#: Option -> the setting that it stands for.
_SETTINGS = {
    "mode": ("worker", "mode"),
    "node_id": ("worker", "node_id"),
    "node_name": ("node_name",),
    "queues": ("worker", "queues"),
    "pool_size": ("worker", "pool_size"),
    "max_concurrent_tasks": ("worker", "max_concurrent_tasks"),
    "log_level": ("log_level",),
    "log_file": ("worker", "log_file"),
    "heartbeat_interval": ("worker", "heartbeat_seconds"),
}
_WITHOUT_EFFECT = {
    name.removeprefix(_LONG): why for name, why in LEGACY_WITHOUT_EFFECT.items() if name.startswith(_LONG)
}
_MODES = ("distributed", "standalone")
_MODES_HELP = "Join an installation on several hosts, or run web server, daemon and one worker here.  [worker.mode]"
_NONE = "No counterpart here: refused, with what replaces it."


@click.command()
@click.option("--mode", type=click.Choice(_MODES), help=_MODES_HELP)
@click.option("--config", type=click.Path(path_type=Path), help="File of variables.  [worker.env, where there is one]")
@click.option("--node-id", help="Tells workers apart, also those of one host.  [worker.node_id]")
@click.option("--node-name", help="What this host is called.  [node_name]")
@click.option("--queues", help=f"Take runs from these only, as in text,image: {', '.join(QUEUES)}.  [worker.queues]")
@click.option("--pool-size", type=int, help="Processes; each executes one run at a time.  [worker.pool_size]")
@click.option("--max-concurrent-tasks", type=int, help="Runs at a time, where that is less than the pool's size.")
@click.option("--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), help="[log_level]")
@click.option("--log-file", type=click.Path(path_type=Path), help="Log there, not to stderr.  [worker.log_file]")
@click.option("--heartbeat-interval", type=float, help="Seconds.  [worker.heartbeat_seconds]")
@click.option("--master-host", help=_NONE)
@click.option("--master-port", help=_NONE)
@click.option("--api-token", help=_NONE)
@click.option("--task-poll-interval", help=_NONE)
def command(config: Path | None, **options: Any) -> int:
    """Execute runs until SIGTERM or Ctrl-C; models stay loaded from run to run.

    Each option is also a variable (WORKER_POOL_SIZE, VECTORIZE_WORKER_POOL_SIZE, or as the settings have it
    VECTORIZE_WORKER__POOL_SIZE), in the environment or in worker.env; options win. At the first signal a run finishes
    the batch in hand and the rest of its work is another run's; a second Ctrl-C ends everything at once.
    """
    from vectorize_pipelines.runs.workers.app import check_available

    _enter_variables(config)
    _refuse({name: options.pop(name.lower()) for name in _WITHOUT_EFFECT})
    # In the environment, for all the processes that load the settings again.
    os.environ.update(
        {variable_name(_SETTINGS[name]): str(given) for name, given in options.items() if given is not None}
    )
    settings = load_settings()
    home.keep_private(settings)
    check_available(settings)
    return _standalone(settings) if settings.worker.mode == "standalone" else _distributed(settings)


def _enter_variables(config: Path | None) -> None:
    """Take the file's variables where the environment lacks them, and give the short names their long ones.

    Raises `SettingsError`, without any value.
    """
    if config is not None and config.suffix in (".yaml", ".yml", ".json", ".toml"):
        raise SettingsError(
            f"--config {config}: it has to be a file of lines such as WORKER_POOL_SIZE=2; settings in YAML are read "
            "from vectorize.yaml in the working directory"
        )
    file = config or _ENV_FILE
    if config is not None or file.exists():
        for name, value in _read(file).items():
            os.environ.setdefault(name, value)
    known = {name for name in (*LEGACY_NAMES, *LEGACY_WITHOUT_EFFECT) if name.startswith(_LONG)}
    for long in known:
        short = _SHORT + long.removeprefix(_LONG)
        if os.environ.get(short):
            os.environ.setdefault(long, os.environ[short])


def _read(file: Path) -> dict[str, str]:
    from dotenv import dotenv_values

    try:
        with file.open(encoding="utf-8") as stream:
            return {name: value for name, value in dotenv_values(stream=stream).items() if value is not None}
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} cannot be read: byte {error.start + 1} is not UTF-8") from None


def _refuse(options: Mapping[str, Any]) -> None:
    """Raise `SettingsError` for what has no counterpart, all of it at once."""
    lines = []
    for name, given in options.items():
        variable = next((each for each in (_SHORT + name, _LONG + name) if os.environ.get(each)), None)
        said = "--" + name.lower().replace("_", "-") if given is not None else variable
        if said is not None:
            lines.append(f"{said} has no counterpart, take it away: {_WITHOUT_EFFECT[name]}")
    if lines:
        raise SettingsError("\n  ".join(["what cannot be heeded was given:", *lines]))


def _distributed(settings: Settings) -> int:
    """Work for an installation whose state several hosts share. Raises `SettingsError` where they cannot."""
    from vectorize_pipelines.runs.workers.node import node_id, work
    from vectorize_pipelines.state.database import DAGSTER_CONFIG, dagster_storage, database_url
    from vectorize_pipelines.state.redis_connection import ping_redis

    home.use_dagster_home(settings)
    folder = Path(os.environ["DAGSTER_HOME"])
    if not hasattr(dagster_storage(folder), "get_backend_name"):
        raise SettingsError(
            f"workers on several hosts share Dagster's runs in PostgreSQL, and {folder / DAGSTER_CONFIG} keeps them in "
            "files of this host: put a copy with `storage: {postgres: …}` in its place, the same on every host, or "
            "take `--mode standalone`"
        )
    if database_url(settings).get_backend_name() != "postgresql":
        raise SettingsError(
            "workers on several hosts share one ledger, and ledger.url (VECTORIZE_LEDGER__URL) names a file: take it "
            "away, and the database of dagster.yaml is used"
        )
    ping_redis(settings)
    _log(settings)
    click.echo(f"worker {node_id(settings)} takes runs from {', '.join(settings.worker.queues)}", err=True)
    return work(settings)


def _standalone(settings: Settings) -> int:
    """Run the web server, the daemon and one worker on this host."""
    from vectorize_pipelines.cli.serve import serve
    from vectorize_pipelines.state.redis_connection import ping_redis
    from vectorize_pipelines.supervision import Service

    ping_redis(settings)
    os.environ[variable_name(("run_launcher",))] = "celery"
    worker = Service("worker", [sys.executable, "-m", "vectorize_pipelines.cli.worker"])
    return serve(load_settings(), with_daemon=True, beside=(worker,))


def _log(settings: Settings) -> None:
    """Log as the settings say. Raises `SettingsError` where the file cannot be written."""
    for name in ("vectorize_pipelines", "celery"):
        logging.getLogger(name).setLevel(settings.log_level)
    if settings.worker.log_file is None:
        return
    try:
        handler = WatchedFileHandler(settings.worker.log_file, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"worker.log_file {settings.worker.log_file} cannot be written: {error.strerror}") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().handlers = [handler]


def main() -> int:
    """Work in a process that `--mode standalone` has started, whose other services have prepared everything."""
    from vectorize_pipelines.runs.workers.node import work

    settings = load_settings()
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    _log(settings)
    return work(settings)


if __name__ == "__main__":
    sys.exit(main())
