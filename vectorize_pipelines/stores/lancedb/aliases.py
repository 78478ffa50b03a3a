"""The aliases of a LanceDB database, which are the rows of a table of their own. Called by `catalogue`."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from vectorize_pipelines.stores.lancedb.commits import newest_commit
from vectorize_pipelines.stores.lancedb.tables import PRIMARY_KEY

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
        self._read: tuple[bytes | None, dict[str, str]] = (None, {})

    def all(self) -> dict[str, str]:
        """Return the physical name of each alias. The table is read again only when it changed: every call asks."""
        newest = None if self._directory is None else newest_commit(self._directory, ALIASES)
        commit, aliases = self._read
        if newest is None or newest != commit:
            aliases = self._rows()
            self._read = (newest, aliases)
        return dict(aliases)

    def point(self, name: str, physical: str) -> None:
        """Point an alias at a physical name; the table is there."""
        row = pa.Table.from_pylist([{"name": name, "physical": physical}], schema=SCHEMA)
        merge = self._database.open_table(ALIASES).merge_insert("name")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(row)

    def remove(self, physical: str) -> None:
        """Remove the aliases of a physical name; the table is there."""
        quoted = physical.replace("'", "''")
        self._database.open_table(ALIASES).delete(f"physical = '{quoted}'")

    def _rows(self) -> dict[str, str]:
        try:
            table = self._database.open_table(ALIASES)
        except ValueError as error:
            if is_not_found(error):
                return {}
            raise
        rows = table.search().limit(None).to_arrow()
        return dict(zip(rows["name"].to_pylist(), rows["physical"].to_pylist(), strict=True))


def is_not_found(error: ValueError) -> bool:
    """Return whether LanceDB says with this that there is no such table."""
    return "was not found" in str(error)
