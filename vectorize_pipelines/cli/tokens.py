"""`vectorize tokens`: who may call the HTTP server, and what for."""

import json
import shlex

import click

from vectorize_pipelines.cli.tables import print_table
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.gateway.door.tokens import Scope, TokensFile, as_entry, from_setting, new_token, ordered
from vectorize_pipelines.settings import variable_name
from vectorize_pipelines.state.home import enter_home

VARIABLE = variable_name(("gateway", "tokens"))

_as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
def command() -> None:
    """Make, list and revoke the tokens with which `vectorize serve` is called.

    Without any, a server that listens at this machine only lets everybody in, and others do not start.
    """


@command.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    default=("read",),
    show_default=True,
    help="What it allows; each includes those before it. May be given again.",
)
@click.option("--no-file", is_flag=True, help=f"Keep nothing: print the line for {VARIABLE} too.")
@_as_json
def create(name: str, scopes: tuple[str, ...], no_file: bool, as_json: bool) -> None:
    """Make a token for NAME, a person or a program, and print it: it is not to be had a second time."""
    settings = enter_home()
    granted = ordered(map(Scope, scopes))
    if any(token.name == name for token in from_setting(settings.gateway.tokens)):
        raise SettingsError(f"{VARIABLE} has a token {name!r} already: take another name")
    setting = None
    if no_file:
        token = new_token()
        try:
            setting = as_entry(name, granted, token)
        except ValueError as error:
            raise SettingsError(f"the name of a token {error}") from None
    else:
        token = TokensFile.of(settings).add(name, granted)
    if as_json:
        outcome = {"name": name, "token": token, "scopes": granted} | ({"setting": setting} if setting else {})
        click.echo(json.dumps(outcome, ensure_ascii=False, indent=2))
        return
    click.echo(token)
    click.echo("keep it: only its hash is stored, and it is not shown again", err=True)
    if setting is not None:
        click.echo(f"{VARIABLE}={shlex.quote(setting)}")
        if settings.gateway.tokens is not None:
            click.echo(f"{VARIABLE} has tokens already: add this one behind a comma", err=True)


@command.command("list")
@_as_json
def list_(as_json: bool) -> None:
    """List the tokens: name, scopes, when they were made, and where they come from; neither tokens nor hashes."""
    settings = enter_home()
    tokens = (*TokensFile.of(settings).read(), *from_setting(settings.gateway.tokens))
    rows = [
        {
            "name": token.name,
            "scopes": [scope.value for scope in token.scopes],
            "created_at": None if token.created_at is None else token.created_at.isoformat(),
            "where": token.place,
        }
        for token in tokens
    ]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    elif rows:
        print_table(
            ("name", "scopes", "made", "from"),
            [
                (
                    token.name,
                    ",".join(token.scopes),
                    "" if token.created_at is None else f"{token.created_at:%Y-%m-%d %H:%M} UTC",
                    token.place,
                )
                for token in tokens
            ],
        )
    else:
        click.echo("no tokens; `vectorize tokens create NAME` makes one", err=True)


@command.command()
@click.argument("name")
@_as_json
def revoke(name: str, as_json: bool) -> None:
    """Revoke the token NAME. A running server refuses it within a second, and ends the sessions begun with it."""
    settings = enter_home()
    fixed = from_setting(settings.gateway.tokens)
    also_fixed = any(token.name == name for token in fixed)
    file = TokensFile.of(settings)
    if also_fixed and all(token.name != name for token in file.read()):
        raise SettingsError(f"{name!r} comes from {VARIABLE}: take it out there, and start the server again")
    left = file.remove(name)
    if as_json:
        click.echo(json.dumps({"revoked": name}, ensure_ascii=False, indent=2))
    else:
        click.echo(f"{name} is revoked")
    if also_fixed:
        click.echo(f"warning: {VARIABLE} has a token {name!r} too, which goes on to count", err=True)
    if not left and not fixed:
        click.echo(
            "warning: no token is left: from its next start on, a server at loopback lets everybody in", err=True
        )
