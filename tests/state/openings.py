"""What other processes do to the database of an installation, in this version of the project and in a later one.

Apart from the tests, and without Dagster, so that a process that begins with it is soon there.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.paths import CHECKOUT
from tests.state import further_migrations
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state import migrations
from vectorize_pipelines.state.ledger import RequestLedger

FURTHER = Path(further_migrations.__file__).parent
_URL_FILE = "ledger_url"


def use_further_migrations() -> None:
    """Make this process one of a later version."""
    migrations.FOLDERS = (*migrations.FOLDERS[:1], FURTHER)
    migrations.HEAD = "9001"


def noted(settings: Settings) -> Path:
    """Return the home of an installation, in which other processes find its database."""
    settings.home.mkdir(parents=True, exist_ok=True)
    if settings.ledger.url is not None:
        (settings.home / _URL_FILE).write_text(settings.ledger.url.get_secret_value())
    return settings.home


def open_there(home: str) -> None:
    """Open the database of an installation."""
    file = Path(home, _URL_FILE)
    url = {"url": file.read_text()} if file.exists() else {}
    RequestLedger.open(load_settings({}, home=home, ledger=url)).close()


def open_there_as_later_version(home: str) -> None:
    """Open it as a later version does."""
    use_further_migrations()
    open_there(home)


def open_there_and_say_what_was_imported(home: str) -> None:
    """Open it, and print which libraries of migrations that took."""
    open_there(home)
    print(*[name for name in ("alembic", "mako") if name in sys.modules])


def die_before_the_version_is_written(home: str) -> None:
    """Make the tables of a new database, and be killed."""
    from alembic.runtime.migration import HeadMaintainer

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    HeadMaintainer.update_to_step = die  # type: ignore[assignment, method-assign]
    open_there(home)


def start(function: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call a function of this module in a process of its own."""
    code = f"import sys; from tests.state.openings import {function} as call; call(sys.argv[1])"
    return subprocess.run(
        [sys.executable, "-c", code, str(home)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
