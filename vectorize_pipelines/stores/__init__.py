"""Vector stores. The upper half, the pipeline and the command line open theirs with `open_store`.

The contract is `base.VectorStore`, filters are in `filters`; nothing else here is meant to be called.
"""

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from vectorize_pipelines.core.extras import EXTRAS, missing
from vectorize_pipelines.errors import SettingsError

if TYPE_CHECKING:
    from vectorize_pipelines.settings import StoreSettings
    from vectorize_pipelines.state.table_locks import TableLocks
    from vectorize_pipelines.stores.base import VectorStore

ENTRY_POINTS = "vectorize_pipelines.stores"


def open_store(settings: "StoreSettings", home: Path, locks: "TableLocks | None" = None) -> "VectorStore":
    """Return the store that the settings name by `kind`; `home` is VECTORIZE_HOME, where an embedded store lies.

    `locks` are those of the installation, closed with the store. Without them a store that needs them to serialise its
    writers, such as LanceDB in an object store, can only be read.

    Raises `SettingsError` where no store of this kind is installed or a package that it needs is not, and
    `StoreError` where the store cannot be opened. Importing LanceDB takes a second or two: a caller in a hurry
    opens the store in a thread while its model loads.
    """
    installed = entry_points(group=ENTRY_POINTS)
    if settings.kind not in installed.names:
        kinds = ", ".join(sorted(installed.names)) or "none"
        raise SettingsError(f"store.kind: no store {settings.kind!r} is installed; installed are: {kinds}")
    entry = installed[settings.kind]
    if entry.value.startswith(f"{__name__}.") and settings.kind in EXTRAS:  # a store of another package sees to itself
        lacking = missing(f"store.kind {settings.kind}", settings.kind)
        if lacking is not None:
            raise SettingsError(lacking)
    store = _load(entry).open(settings, home)
    if locks is not None and store.needs_table_locks:
        store.use_table_locks(locks)
    return store


def _load(entry: EntryPoint) -> "type[VectorStore]":
    try:
        store: type[VectorStore] = entry.load()
    except ImportError as error:
        raise SettingsError(
            f"store.kind: {entry.name!r} is installed as {entry.value} but cannot be imported: {error}"
        ) from error
    return store
