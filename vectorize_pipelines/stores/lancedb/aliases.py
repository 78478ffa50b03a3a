"""The aliases of a LanceDB database, which are the rows of a table of their own. Called by `catalogue`."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from vectorize_pipelines.stores.lancedb.commits import newest_commit
from vectorize_pipelines.stores.lancedb.tables import PRIMARY_KEY
from vectorize_pipelines.stores.lancedb.writing import delete_once, merge_once

#: The table's name.
ALIASES = "_aliases"

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False, metadata=PRIMARY_KEY),
        pa.field("physical", pa.string(), nullable=False),
    ]
)


class Aliases:
    """The collection that each alias stands for at this moment. The lock `ALIASES` is held by every writer."""

    def __init__(self, database: Any, directory: Path | None) -> None:
        """Take `directory`, where the database lies, or None where that is no directory."""
        self._database, self._directory = database, directory
        #: What was read last, and of which commit; of an object store of which version.
        self._read: tuple[bytes | int | None, dict[str, str]] = (None, {})
        #: Of an object store: the table, as long as there is one.
        self._table: Any = None

    def all(self) -> dict[str, str]:
        """Return the physical name of each alias. The table is read again only when it changed: every call asks."""
        newest = self._newest_version() if self._directory is None else newest_commit(self._directory, ALIASES)
        known, aliases = self._read
        if newest is None or newest != known:
            aliases = self._rows()
            self._read = (newest, aliases)
        return dict(aliases)

    def open(self) -> Any:
        """Return the table, to be changed; it is there."""
        return self._database.open_table(ALIASES)

    def point(self, table: Any, name: str, physical: str) -> None:
        """Point an alias at a physical name, in the table as `open` returned it before the lock was checked."""
        row = pa.Table.from_pylist([{"name": name, "physical": physical}], schema=SCHEMA)
        if self._directory is None:
            merge_once(table, "name", row)
        else:
            merge = table.merge_insert("name")
            merge.when_matched_update_all().when_not_matched_insert_all().execute(row)

    def remove(self, table: Any, physical: str) -> None:
        """Remove the aliases of a physical name, likewise."""
        quoted = physical.replace("'", "''")
        condition = f"physical = '{quoted}'"
        if self._directory is None:
            delete_once(table, condition)
        else:
            table.delete(condition)

    def _newest_version(self) -> int | None:
        """Return the newest version in an object store, by one request; None where there is none."""
        if self._table is None:
            self._table = self._found()
        else:
            self._table.checkout_latest()
        return None if self._table is None else int(self._table.version)

    def _rows(self) -> dict[str, str]:
        table = self._found() if self._table is None else self._table
        if table is None:
            return {}
        rows = table.search().limit(None).to_arrow()
        return dict(zip(rows["name"].to_pylist(), rows["physical"].to_pylist(), strict=True))

    def _found(self) -> Any:
        """Return the table at its newest version; None where there is none."""
        try:
            return self.open()
        except ValueError as error:
            if is_not_found(error):
                return None
            raise


def is_not_found(error: ValueError) -> bool:
    """Return whether LanceDB says with this that there is no such table."""
    return "was not found" in str(error)
