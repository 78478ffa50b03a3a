"""Where everything lies below VECTORIZE_HOME. Each folder is made by whoever writes to it first.

Another VECTORIZE_HOME is a fully separate installation: nothing is shared, nothing is written elsewhere.
"""

import os
from pathlib import Path

from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.settings import PROJECT_ROOT, Settings

DAGSTER_YAML = PROJECT_ROOT / "dagster.yaml"


def manifest_file(settings: Settings, collection: str) -> Path:
    """What is known of the files in a collection."""
    return settings.home / "manifests" / f"{collection}.sqlite"


def manifest_lock(settings: Settings, collection: str) -> Path:
    """Held by the one run that brings a collection up to date with its files."""
    return settings.home / "locks" / f"manifest-{collection}.lock"


def generations_lock(settings: Settings, collection: str) -> Path:
    """Held for the time of a write to several generations of a collection, where the database is SQLite."""
    return settings.home / "locks" / f"generations-{collection}.lock"


def request_lock(settings: Settings, collection: str) -> Path:
    """Held while the rows of a collection that come from requests are written, where the database is SQLite."""
    return settings.home / "locks" / f"requests-{collection}.lock"


def model_cache(settings: Settings) -> Path:
    """What was found out about models: revisions, exports, measurements."""
    return settings.encoder.cache_directory or settings.home / "encoders"


def embedding_cache(settings: Settings) -> Path:
    """Vectors of earlier runs, by model and content."""
    return settings.home / "cache" / "embeddings.sqlite"


def spill(settings: Settings) -> Path:
    """Batches that wait for a store that is away; the files in it have no names."""
    return settings.home / "spill"


def run_locks(settings: Settings) -> Path:
    """The folder of the locks that runs of `vectorize ingest` hold while their processes live."""
    return settings.home / "locks" / "runs"


def dagster_home(settings: Settings) -> Path:
    """Dagster's own home; made with the project's `dagster.yaml` where it has none yet.

    A link, not a copy, so that there is one file to edit. An installation that needs another one puts it there.
    Raises `SettingsError` where the folder cannot be written.
    """
    home = settings.home / "dagster"
    config = home / "dagster.yaml"
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not config.exists():
            config.unlink(missing_ok=True)  # a link whose target has moved away
            config.symlink_to(DAGSTER_YAML)
    except FileExistsError:
        return home  # another process made the link at the same moment
    except OSError as error:
        raise SettingsError(f"VECTORIZE_HOME {settings.home} cannot be written: {error.strerror}") from None
    return home


def use_dagster_home(settings: Settings) -> None:
    """Points this process, and those that it starts, at the project's Dagster instance; telemetry stays off.

    A DAGSTER_HOME that is set already gives way, or another VECTORIZE_HOME would share its instance.
    Raises `SettingsError` where the folder cannot be written.
    """
    os.environ["DAGSTER_HOME"] = str(dagster_home(settings))
