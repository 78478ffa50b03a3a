"""The tables of a LanceDB database: found by name or alias, opened, made, dropped, and mended where they are damaged.

Called by `LanceDBStore`, which translates the failures.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Collection as AnyOf
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.errors import CollectionNotFoundError, DamagedCollectionError, StoreError
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.stores.base import Collection
from vectorize_pipelines.stores.contents import check_model
from vectorize_pipelines.stores.failures import failure_text, no_such_collection
from vectorize_pipelines.stores.lancedb.aliases import ALIASES, Aliases, is_not_found
from vectorize_pipelines.stores.lancedb.aliases import SCHEMA as ALIASES_SCHEMA
from vectorize_pipelines.stores.lancedb.commits import table_folder, versions
from vectorize_pipelines.stores.lancedb.connection import connect
from vectorize_pipelines.stores.lancedb.durability import Durability
from vectorize_pipelines.stores.lancedb.failures import translate_errors
from vectorize_pipelines.stores.lancedb.location import Location
from vectorize_pipelines.stores.lancedb.locks import WriterLocks
from vectorize_pipelines.stores.lancedb.tables import (
    DIMENSION,
    MODEL,
    dimension_of,
    is_collection,
    revision_of,
    table_schema,
)
from vectorize_pipelines.stores.lancedb.wholeness import is_whole

logger = logging.getLogger(__name__)

KIND = "lancedb"
#: Of a table, which is a folder with `.lance` behind its name: systems of files take 255, object stores more.
_LONGEST_NAME_BYTES = 249


class Catalogue:
    """The tables of one location.

    shown_location  without credentials
    locks           what writers hold of a table
    aliases         what each alias stands for
    durability      what of the tables is on the disk itself; None of an object store, which has what it has confirmed
    """

    def __init__(self, location: Location, locks: WriterLocks, forgotten: Callable[[str], None]) -> None:
        """Take `forgotten`, which is called with a table of which nothing that was known holds any more."""
        self.shown_location = location.shown
        self.locks = locks
        self._location = location
        self._directory = directory = location.directory
        self._forgotten = forgotten
        self._dimensions: dict[str, int] = {}
        #: (table, thread that holds its lock) -> the lock.
        self._held: dict[tuple[str, int], ExclusiveLock] = {}
        self._database: Any = None
        self._connect()
        self.names()
        self.durability = None if directory is None else Durability(directory, self.locked)
        self.check(ALIASES)

    def close(self) -> None:
        """Put what was written on the disk, and let go of the connection and of what the locks are taken by."""
        try:
            if self.durability is not None:
                self.durability.close()
        finally:
            self._database = None
            self.locks.close()

    # ---- names and aliases

    def physical(self, name: str) -> str:
        """Return the table that an alias or a physical name stands for, checked; it may be gone.

        Raises `CollectionNotFoundError` for a name that no table could have.
        """
        physical = self.aliases.all().get(name, name)
        if len(physical.encode("utf-8", "surrogatepass")) > _LONGEST_NAME_BYTES:
            raise self.not_found(name)
        self.check(physical)
        return physical

    def standing(self, name: str) -> Collection | None:
        """Return what an alias or a physical name stands for now; None also for an alias whose collection is gone."""
        physical = self.physical(name)
        if physical not in self.names():
            return None
        try:
            return self.describe(name, physical)
        except CollectionNotFoundError:  # what a killed `drop` has left in an object store
            return None

    def names(self) -> set[str]:
        """Return the names of all tables but the project's own, `_aliases`."""
        return {name for name in self._all_names() if not name.startswith("_")}

    def _all_names(self) -> set[str]:
        names: set[str] = set()
        page = self._database.list_tables()
        names.update(page.tables)
        while page.page_token:
            page = self._database.list_tables(page_token=page.page_token)
            names.update(page.tables)
        return names

    def not_found(self, name: str) -> CollectionNotFoundError:
        """Return the error for a name that no table has."""
        return no_such_collection(name, self.shown_location, self.names() | set(self.aliases.all()))

    def point_alias(self, name: str, physical: str) -> None:
        """Have an alias stand for a table. The caller holds the lock `ALIASES`."""
        self._create(ALIASES, ALIASES_SCHEMA)
        table = self.aliases.open()
        self.writing(ALIASES)
        self.aliases.point(table, name, physical)

    # ---- tables

    def make(self, name: str, spec: EncoderSpec, physical: str) -> Collection:
        """Return the collection behind a name that stood for none; an older one without an alias is taken up again.

        The caller holds the lock `ALIASES`.
        """
        self._create(physical, table_schema(spec))
        check_model(self.describe(name, physical), revision_of(self.table(physical)), spec)
        if name != physical:
            self.point_alias(name, physical)
        return self.describe(name, physical)

    def drop(self, physical: str) -> None:
        """Remove a table and its aliases. The caller holds the lock `ALIASES`. Raises `CollectionNotFoundError`."""
        if physical not in self.names():
            raise self.not_found(physical)
        if ALIASES in self._all_names():
            table = self.aliases.open()
            self.writing(ALIASES)
            self.aliases.remove(table, physical)
            self.flush((ALIASES,))
        with self.locked(physical):
            self._forgotten(physical)
            self._dimensions.pop(physical, None)
            if self.durability is None:
                self.writing(physical)
                self._database.drop_table(physical)
            else:  # also where LanceDB cannot read it
                self.durability.dropped(physical)
        self._connect()

    def open(self, name: str) -> Any:
        """Return the open table of a collection, by its alias or physical name; raises as `table`."""
        return self.table(self.physical(name))

    def _create(self, table: str, schema: pa.Schema) -> None:
        """Make a table where there is none. The caller holds the lock `ALIASES`."""
        if table in self._all_names():
            if not self._is_remnant(table):
                return
            self.writing(ALIASES)
            self._database.drop_table(table)
        if self.durability is not None:
            self.durability.creating(table)
        else:
            self.writing(ALIASES)
        try:
            self._database.create_table(table, schema=schema)
        except ValueError as error:  # of the writer of another installation, which does not take our locks
            if "already exists" not in str(error):
                raise

    def _is_remnant(self, table: str) -> bool:
        """Return whether a table in an object store is what is left of one: its files do not go all at once."""
        if self._directory is not None:
            return False
        try:
            self._opened(table)
        except CollectionNotFoundError:
            return True
        return False

    def table(self, physical: str) -> Any:
        """Return an open table at its newest version.

        Raises `CollectionNotFoundError`, `DamagedCollectionError`, and `StoreError` for a table of others.
        """
        table = self._opened(physical)
        if not is_collection(table):
            if not table.schema.names:  # as LanceDB reads a version's file that holds zeros
                raise DamagedCollectionError(failure_text("reading its version", physical, "", "", "it has no columns"))
            raise StoreError(f"the table {physical!r} in {self.shown_location} is not a collection of this project")
        return table

    def _opened(self, physical: str) -> Any:
        try:
            return self._database.open_table(physical)
        except ValueError as error:
            if not is_not_found(error):
                raise
            raise self.not_found(physical) from None

    def dimension(self, physical: str) -> int:
        """Return the length of a table's vectors; remembered, since a physical name carries it."""
        if physical not in self._dimensions:
            self._dimensions[physical] = dimension_of(self.table(physical))
        return self._dimensions[physical]

    def describe(self, name: str, physical: str) -> Collection:
        """Return what a table says of its collection; raises as `table`."""
        metadata = self.table(physical).schema.metadata
        return Collection(
            name=name,
            physical=physical,
            store=KIND,
            location=self.shown_location,
            model=metadata[MODEL].decode(),
            dimension=int(metadata[DIMENSION]),
        )

    def all(self) -> list[Collection]:
        """Return the collections that can be read, by their aliases where they have any."""
        tables = self.names()
        aliases = {name: physical for name, physical in self.aliases.all().items() if physical in tables}
        names = aliases | {table: table for table in tables - set(aliases.values())}
        described = [self._described_if_readable(name, physical) for name, physical in sorted(names.items())]
        return [each for each in described if each is not None]

    def _described_if_readable(self, name: str, physical: str) -> Collection | None:
        """Return None for a table of others, and for one that is damaged, which must not hide the others."""
        try:
            with translate_errors(self._location, f"reading {physical!r}"):
                self.check(physical)
                return self._described_if_own(name, physical)
        except CollectionNotFoundError:
            return None  # it was dropped meanwhile, or never made to its end
        except DamagedCollectionError as error:
            if self._mended(physical):
                return self._described_if_readable(name, physical)
            logger.warning("the collection %s is damaged and left out: %s", name, error)
            return None

    def _described_if_own(self, name: str, physical: str) -> Collection | None:
        table = self._opened(physical)
        return None if table.schema.names and not is_collection(table) else self.describe(name, physical)

    # ---- what is on the disk, and whole

    def check(self, table: str) -> None:
        """Put aside what of a table a loss of power may have left half."""
        if self.durability is not None and self.durability.check(table):
            self._forget(table)

    def writing(self, table: str) -> None:
        """Note that a table is about to be written to. The caller holds its lock.

        Raises `LockLostError` where that is not certain any more: then nothing may be written.
        """
        if self.durability is not None:
            self.durability.writing(table)
        else:
            self._held[table, threading.get_ident()].check()

    def flush(self, tables: AnyOf[str] | None, relied_on: Sequence[str] = ()) -> None:
        """Put tables on the disk itself; see `Durability.flush`."""
        if self.durability is not None:
            self.durability.flush(tables, relied_on)

    @contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Hold a table's lock, which all of its writers take. Raises as `WriterLocks.exclusive`."""
        with self.locks.exclusive(table) as lock:
            self._held[table, threading.get_ident()] = lock
            try:
                yield
            finally:
                del self._held[table, threading.get_ident()]

    def damaged(self) -> list[str]:
        """Return the tables of which no version is whole; those that have an earlier one that is fall back to it.

        Of an object store it is those whose newest version cannot be read: nothing falls back there.
        """
        directory = self._directory
        if directory is None:
            return [each for each in sorted(self.names()) if "__" in each and self._is_unreadable(each)]
        return [each for each in sorted(self.names()) if "__" in each and self._is_damaged(directory, each)]

    def _is_damaged(self, directory: Path, physical: str) -> bool:
        newest = next(iter(versions(directory, physical)), None)
        folder = table_folder(directory, physical)
        whole = newest is not None and is_whole(folder, newest)
        return not whole and folder.exists() and not self._mended(physical)

    def _is_unreadable(self, physical: str) -> bool:
        try:
            with translate_errors(self._location, f"reading {physical!r}"):
                self.table(physical)
        except CollectionNotFoundError:
            return False
        except DamagedCollectionError:
            return True
        return False

    def mended(self, name: str) -> bool:
        """Have a collection that cannot be read fall back to its last whole version; returns whether one did.

        Raises `StoreError`.
        """
        with translate_errors(self._location, f"looking for the last version of {name!r} that is whole"):
            if self.durability is None:
                return False
            mended = self._mended(ALIASES) or self._without_aliases()
            return self._mended(self.aliases.all().get(name, name)) or mended

    def _mended(self, table: str) -> bool:
        changed = self.durability is not None and self.durability.mend(table)
        if changed:
            self._forget(table)
        return changed

    def _without_aliases(self) -> bool:
        """Put the table of aliases aside where no version of it can be read: the collections must not go with it."""
        if self.durability is None or self._directory is None:
            return False
        with self.locked(ALIASES):
            newest = next(iter(versions(self._directory, ALIASES)), None)
            folder = table_folder(self._directory, ALIASES)
            if not folder.exists() or (newest is not None and is_whole(folder, newest)):
                return False
            place = self.durability.put_table_aside(ALIASES)
        self._forget(ALIASES)
        logger.error(
            "the aliases in %s are damaged and put aside as %s: collections have their physical names only, until the "
            "next run of each names it again",
            self.shown_location,
            place,
        )
        return True

    def _forget(self, table: str) -> None:
        self._forgotten(table)
        self._dimensions.pop(table, None)
        self._connect()

    def _connect(self) -> None:
        """Connect, again where tables were removed or fell back: a connection remembers versions by their numbers."""
        self._database = connect(self._location)
        self.aliases = Aliases(self._database, self._directory)
