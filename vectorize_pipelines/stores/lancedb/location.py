"""Where the tables of a LanceDB database lie: a folder, or an object store and how it is reached. Called by `store`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vectorize_pipelines.core.urls import shown_url
from vectorize_pipelines.errors import SettingsError

if TYPE_CHECKING:
    from vectorize_pipelines.settings import StoreSettings

#: Schemes of object stores that LanceDB reads and writes itself.
OBJECT_STORES = ("s3", "gs", "az", "abfss")


@dataclass(frozen=True, slots=True)
class Location:
    """The place of a database.

    uri        as LanceDB takes it; it may hold credentials
    directory  the folder; None for an object store
    options    LanceDB's storage options of an object store, secrets among them
    secrets    what of them no error may repeat
    """

    uri: str
    directory: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def folder(cls, directory: Path) -> Self:
        """Return the location that is a folder of this machine."""
        return cls(str(directory), directory)

    @classmethod
    def of(cls, settings: "StoreSettings", home: Path) -> Self:
        """Return the location `settings.url`, by default `home/lancedb`.

        Raises `SettingsError` for a URL that is neither a path nor of an object store, and for storage options that do
        not fit it or refer to a variable that is not set.
        """
        uri = settings.url or str(home / "lancedb")
        scheme = urlsplit(uri).scheme if "://" in uri else ""
        if scheme in OBJECT_STORES:
            options, secrets = settings.lancedb.resolved_options()
            return cls(uri, None, options, secrets)
        if scheme not in ("", "file"):
            raise SettingsError(
                f"store.url: {scheme}:// is not for lancedb; give a path, or one of {', '.join(OBJECT_STORES)}"
            )
        if settings.lancedb.storage_options:
            raise SettingsError(
                f"store.lancedb.storage_options are those of an object store, and store.url names none: give a URI "
                f"with one of {', '.join(OBJECT_STORES)}, or leave them out"
            )
        path = Path(url2pathname(urlsplit(uri).path)) if scheme else Path(uri)
        return cls.folder(path.expanduser().absolute())

    @property
    def shown(self) -> str:
        """The location without credentials."""
        return shown_url(self.uri)

    @property
    def identity(self) -> str:
        """The location as its locks name it: one name for both forms of a URI of Azure, without the account.

        Two accounts with the same container and path share locks, which only has their writers take turns.
        """
        parts = urlsplit(self.uri)
        if parts.scheme != "abfss" or not parts.username:
            return self.shown
        return f"az://{parts.username}{urlsplit(self.shown).path}"  # abfss://container@account/path
