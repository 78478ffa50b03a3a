"""Where the manifests of an installation lie."""

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import home
from vectorize_pipelines.state.database import Database, database_url
from vectorize_pipelines.state.manifest.base import Manifest
from vectorize_pipelines.state.manifest.database import DatabaseManifest
from vectorize_pipelines.state.manifest.sqlite import SQLiteManifest


def open_manifest(settings: Settings, collection: str) -> Manifest:
    """Open the manifest of a collection, empty where there is none: a file, or tables in PostgreSQL if that is used.

    Raises `SettingsError` where the file cannot be written or the database's address is wrong, `StateError` where the
    disk is full, and `LedgerError` where the database fails.
    """
    if _is_file(settings):
        return SQLiteManifest.open(home.manifest_file(settings, collection))
    return DatabaseManifest(Database.open(settings), collection)


def open_existing_manifest(settings: Settings, collection: str) -> Manifest | None:
    """Open the manifest of a collection without making a file; None where there is none yet.

    Raises as `open_manifest`.
    """
    if _is_file(settings) and not home.manifest_file(settings, collection).exists():
        return None
    return open_manifest(settings, collection)


def _is_file(settings: Settings) -> bool:
    """Return whether the database is a file of this machine, beside which those of the manifests lie."""
    return database_url(settings).get_backend_name() == "sqlite"
