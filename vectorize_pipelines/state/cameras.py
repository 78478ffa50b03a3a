"""When each camera was last heard of: one row a camera, whatever its detections have in them.

Runs over detections note it; the check `silent_cameras` asks.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

import sqlalchemy as sa

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database, Text, metadata, purge_rows
from vectorize_pipelines.state.request_rows import microseconds, storable_id, time_of

#: Times are microseconds since 1970.
cameras = sa.Table(
    "vectorize_cameras",
    metadata,
    sa.Column("camera_id", Text, primary_key=True),
    sa.Column("seen_us", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)


class Cameras:
    """The table of cameras. Safe for use by several threads and processes. Every method may raise `LedgerError`."""

    def __init__(self, database: Database):
        self._database = database
        self._note = database.bulk_upsert(cameras, _is_later)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the cameras of an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings))

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._database.close()

    def note(self, seen: Mapping[str, datetime]) -> None:
        """Note when cameras were heard of; what is noted of them already stands where it is later."""
        latest: dict[str, int] = {}
        for camera_id, at in seen.items():
            stored = storable_id(camera_id)
            latest[stored] = max(microseconds(at), latest.get(stored, 0))
        if latest:
            with self._database.write() as connection:
                # In the same order in every process: they cannot wait for each other's rows.
                self._note(connection, sorted(latest.items()))

    def last_seen(self, since: datetime) -> dict[str, datetime]:
        """Return when each camera that was heard of since then was so for the last time."""
        query = sa.select(cameras).where(cameras.c.seen_us >= microseconds(since))
        with self._database.read() as connection:
            return {each.camera_id: time_of(each.seen_us) for each in connection.execute(query)}

    def purge(self, seen_before: datetime) -> int:
        """Forget cameras that have not been heard of since then; return their number."""
        return purge_rows(self._database, cameras, cameras.c.seen_us < microseconds(seen_before))


def _is_later(new: Any, old: Any) -> sa.ColumnElement[bool]:
    later: sa.ColumnElement[bool] = new.seen_us > old.seen_us
    return later
