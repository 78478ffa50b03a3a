"""What calls to providers took: one row a call, for figures by tenant, camera, model and key.

Called by `providers.calls`; the rows go when `ledger.retention_days` are over.
"""

import logging
import threading
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Self

import sqlalchemy as sa

from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database, Text, metadata, purge_rows
from vectorize_pipelines.state.request_rows import microseconds

logger = logging.getLogger(__name__)

#: A record waits at most so long for those that are written with it.
WRITE_SECONDS = 1.0
#: Records that wait while the database is away; beyond, the oldest are lost, and counted.
MOST_WAITING = 100_000

provider_calls = sa.Table(
    "vectorize_provider_calls",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("tenant", Text),
    sa.Column("camera", Text),
    sa.Column("model", Text, nullable=False),
    sa.Column("key_name", Text, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.Float),
    sa.Column("latency_ms", sa.Float, nullable=False),
    sa.Column("outcome", Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("cached", sa.Boolean, nullable=False),
    sa.Index("vectorize_provider_calls_by_time", "at_us"),
)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call to a provider, with its repeats.

    at         when it began
    model      `MODEL`, or `PROVIDER/MODEL` for a provider that is not the default one
    key_name   the name of the key that it succeeded with, or was last tried with; empty where there was none
    cost       in the currency of the price table; None where the model has no price
    outcome    completed, cached, invalid_answer, refused, unavailable, no_key, misconfigured
    attempts   requests that were sent
    cached     whether the answer came from the cache, and took no tokens
    """

    at: datetime
    model: str
    key_name: str
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    latency_ms: float
    outcome: str
    attempts: int
    cached: bool = False
    tenant: str | None = None
    camera: str | None = None


class CallLog:
    """The table of calls, written by a thread of its own, so that no call waits for it.

    A process that is killed loses the records of its last second. While the database is away they wait.
    """

    def __init__(self, database: Database):
        """Start the thread that writes to `database`, which `close` closes."""
        self._database = database
        self._lock = threading.Lock()
        self._waiting: list[CallRecord] = []
        self._lost = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="vectorize-call-log", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the log of an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings))

    def note(self, record: CallRecord) -> None:
        """Take a record, to be written within a second. Called from any thread."""
        with self._lock:
            self._waiting.append(record)
            surplus = len(self._waiting) - MOST_WAITING
            if surplus > 0:
                del self._waiting[:surplus]
                self._lost += surplus

    def close(self) -> None:
        """Write what is left; a second call does nothing. Raises `LedgerError` where it cannot be written."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join()
        try:
            self._write()
        finally:
            self._database.close()
        if self._lost:
            raise LedgerError(f"{self._lost} records of calls to providers are lost: the database was away too long")

    def _work(self) -> None:
        failing = False
        while not self._closing.wait(WRITE_SECONDS):
            try:
                self._write()
                failing = False
            except LedgerError as error:
                if not failing:
                    logger.warning("records of calls to providers wait: %s", error)
                failing = True

    def _write(self) -> None:
        with self._lock:
            records, self._waiting = self._waiting, []
        if not records:
            return
        try:
            with self._database.write() as connection:
                connection.execute(sa.insert(provider_calls), [_values(record) for record in records])
        except LedgerError:
            with self._lock:
                self._waiting[:0] = records
            raise


def purge_calls(settings: Settings, before: datetime) -> int:
    """Remove the records of calls that began before then; return their number. Raises `LedgerError`."""
    database = Database.open(settings)
    try:
        return purge_rows(database, provider_calls, provider_calls.c.at_us < microseconds(before))
    finally:
        database.close()


def _values(record: CallRecord) -> dict[str, Any]:
    values = {each.name: getattr(record, each.name) for each in fields(record) if each.name != "at"}
    return {"at_us": microseconds(record.at), **values}
