"""`vectorize keys`: the API keys of remote models, by name. The keys themselves are shown nowhere."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from vectorize_pipelines.cli.tables import print_table
from vectorize_pipelines.errors import UnknownKeyError
from vectorize_pipelines.providers.key_check import KeyCheck, check_keys
from vectorize_pipelines.providers.key_file import read_keys
from vectorize_pipelines.providers.key_pool import APIKeyPool, create_key_pool_from_config
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.home import enter_home

T = TypeVar("T")

BY_HAND = "disabled by `vectorize keys disable`"

_as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
def command() -> None:
    """Say what the API keys of remote models do now, in all processes together, and enable and disable them.

    The keys and their limits stand in the file that VECTORIZE_PROVIDERS__KEYS_FILE names.
    """


@command.command("list")
@_as_json
def list_(as_json: bool) -> None:
    """List the keys by name: state, use of each limit, and when each is free next."""
    settings = enter_home()
    health = _with_pool(settings, lambda pool: pool.health_check())
    if as_json:
        rows = [{"name": name, **shown} for name, shown in health.items()]
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    elif health:
        print_table(
            ("name", "provider", "state", "in use", "1 s", "60 s", "tokens", "free in", "calls", "failed", ""),
            [_row(name, shown) for name, shown in health.items()],
            right=("in use", "1 s", "60 s", "tokens", "free in", "calls", "failed"),
        )
    else:
        click.echo(f"no API keys in {settings.providers.keys_file}", err=True)


@command.command()
@click.argument("names", nargs=-1)
@_as_json
def check(names: Sequence[str], as_json: bool) -> int:
    """Ask the providers whether they take the keys NAMES (default: all). Exits with 1 where one is not accepted.

    It asks for the list of models, which costs nothing, and changes nothing: a key that is refused is not disabled.
    """
    settings = enter_home()
    keys = {entry.name: entry for entry in read_keys(settings.providers.keys_file).keys}
    for name in names:
        if name not in keys:
            raise UnknownKeyError(f"{settings.providers.keys_file} has no API key with the name {name}")
    wanted = [keys[name] for name in names or keys]
    found = asyncio.run(check_keys(wanted, settings.providers))
    if as_json:
        rows = [{"name": name, "verdict": each.verdict, "detail": each.detail} for name, each in found.items()]
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    elif found:
        print_table(("name", "verdict", "said"), _verdicts(found))
    else:
        click.echo(f"no API keys in {settings.providers.keys_file}", err=True)
    return 0 if all(each.verdict == "accepted" for each in found.values()) else 1


@command.command()
@click.argument("name")
@_as_json
def enable(name: str, as_json: bool) -> None:
    """Enable the key NAME in all processes, and end its cooling."""
    _with_pool(enter_home(), lambda pool: pool.enable(name))
    click.echo(json.dumps({"enabled": name}, ensure_ascii=False) if as_json else f"{name} is enabled")


@command.command()
@click.argument("name")
@_as_json
def disable(name: str, as_json: bool) -> None:
    """Disable the key NAME in all processes, until it is enabled. Calls that have it go on to their end."""
    _with_pool(enter_home(), lambda pool: pool.disable(name, BY_HAND))
    click.echo(json.dumps({"disabled": name}, ensure_ascii=False) if as_json else f"{name} is disabled")


def _with_pool(settings: Settings, use: Callable[[APIKeyPool], Awaitable[T]]) -> T:
    async def call() -> T:
        pool = create_key_pool_from_config(settings=settings)
        try:
            return await use(pool)
        finally:
            await pool.close()

    return asyncio.run(call())


def _row(name: str, shown: Mapping[str, Any]) -> tuple[str, ...]:
    free = shown["next_available_seconds"]
    return (
        name,
        shown["provider"],
        shown["state"],
        _of(shown["in_use"], shown["max_concurrency"]),
        _of(shown["requests_last_second"], shown["qps_limit"]),
        _of(shown["requests_last_minute"], shown["rpm_limit"]),
        _of(shown["tokens_last_minute"], shown["tpm_limit"]),
        "" if free is None else f"{free:.1f} s" if free else "now",
        str(shown["calls"]),
        str(shown["failures"]),
        shown["disabled_reason"] or "",
    )


def _of(used: int, limit: int | None) -> str:
    return str(used) if limit is None else f"{used}/{limit}"


def _verdicts(found: Mapping[str, KeyCheck]) -> list[tuple[str, str, str]]:
    return [(name, each.verdict, each.detail) for name, each in found.items()]
