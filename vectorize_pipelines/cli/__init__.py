"""The command `vectorize`. Each command is a module beside this file, imported only when it is called.

Results go to stdout, and with `--json` nothing else does; progress, logs and errors go to stderr.
"""

import importlib
import logging
import os
import sys
import warnings
from typing import NoReturn

import click

from vectorize_pipelines.errors import DamagedStateError, VectorizeError

#: Command -> (module, what `vectorize --help` says of it).
COMMANDS = {
    "ingest": ("ingest", "Bring a collection up to date with a folder, a file or a URL."),
    "submit": ("submit", "Submit requests to be embedded, by Kafka."),
    "status": ("status", "Say what became of a request."),
    "requests": ("requests", "List requests, newest first."),
    "cancel": ("cancel", "Cancel requests."),
    "drain": ("drain", "Embed the requests that wait in Kafka."),
    "lag": ("lag", "Say how many requests wait in Kafka."),
    "topics": ("topics", "Make and check the Kafka topics."),
    "dead-letters": ("dead_letters", "List, show and replay messages that failed for a reason of their own."),
    "search": ("search", "Find the passages nearest to a question."),
    "collections": ("collections", "List the collections, and change their models without downtime."),
    "models": ("models", "Show, fetch and export models."),
    "serve": ("serve", "Serve the HTTP API, search, and Dagster's UI."),
    "worker": ("worker", "Execute runs on this host, with models that stay loaded."),
    "workers": ("workers", "List the workers of all hosts."),
    "tokens": ("tokens", "Make, list and revoke the tokens of the HTTP server."),
    "keys": ("keys", "List, check, enable and disable the API keys of remote models."),
    "doctor": ("doctor", "Say what is configured, what answers, what is missing."),
}

EXIT_CODES = """
\b
Exit codes:
  0  done
  1  failed for another reason; --help of a command says which
  2  wrong usage, or a wrong setting
  3  the source cannot be read
  4  the model cannot be loaded
  5  the vector store failed, or has no such collection
  6  done, but some files or requests could not be embedded, or something in a file was left out (they are listed)
  7  the Kafka cluster failed or cannot be reached
  8  no such request
  9  no API key can be had, or what is known of their use is away
130  interrupted
"""


class _LazyGroup(click.Group):
    """The group of the commands, which lists them without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"vectorize_pipelines.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_LazyGroup, epilog=EXIT_CODES)
@click.version_option(package_name="vectorize-pipelines")
def cli() -> None:
    """Text, images and documents become vectors in your vector store.

    Settings come from VECTORIZE_… environment variables, .env and vectorize.yaml; `vectorize doctor` shows them.
    """


def main() -> None:
    """Runs the command line; errors meant for the user are printed without a stack trace."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # The hub's client has a handler of its own: without this each of its lines would be there twice.
    logging.getLogger("huggingface_hub").propagate = False
    # Libraries announce their own changes; those are for us, not for who uses the command.
    warnings.simplefilter("ignore", DeprecationWarning)
    mask = os.umask(0o077)
    os.umask(mask)
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except VectorizeError as error:
        _end(error)
    except Exception as error:
        known = _failure_of_the_home(error)
        if known is None:
            raise
        _end(known)
    finally:
        os.umask(mask)  # commands close what they make to others, which is not for the caller's process


def _end(error: VectorizeError) -> NoReturn:
    click.echo(f"error: {error}", err=True)
    sys.exit(error.exit_code)


def _failure_of_the_home(error: Exception) -> VectorizeError | None:
    """Return the error for a full or read-only disk, or a damaged file, wherever it was met; None for a defect.

    Libraries write into the home, too: Dagster its events, LanceDB its tables.
    """
    from vectorize_pipelines.settings import load_settings
    from vectorize_pipelines.state.dagster_databases import damaged_among
    from vectorize_pipelines.state.damage import explain

    try:
        home = load_settings().home
    except VectorizeError:
        return None
    known = explain(error, home)
    return (damaged_among(home / "dagster") or known) if isinstance(known, DamagedStateError) else known
