"""Records of calls: written by a thread, kept while the database is away, removed after their time."""

import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import provider_calls
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.provider_calls import CallLog, CallRecord, purge_calls

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def record(number: int, at: datetime = NOW) -> CallRecord:
    return CallRecord(
        at=at,
        model="judge",
        key_name="first",
        prompt_tokens=number,
        completion_tokens=2,
        cost=0.5,
        latency_ms=12.5,
        outcome="completed",
        attempts=1,
        tenant="city",
        camera="c1",
    )


def tokens(settings: Settings) -> list[int]:
    table = provider_calls.provider_calls
    with closing(Database.open(settings)) as database, database.read() as connection:
        return list(connection.execute(sa.select(table.c.prompt_tokens).order_by(table.c.id)).scalars())


def test_records_of_all_threads_are_written(settings: Settings) -> None:
    log = CallLog.open(settings)

    def note_some() -> None:
        for _ in range(50):
            log.note(record(1))

    threads = [threading.Thread(target=note_some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    log.close()
    assert sum(tokens(settings)) == 200


def test_records_wait_while_the_database_is_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(provider_calls, "WRITE_SECONDS", 0.01)
    database = Database.open(settings)
    really, failures = database.write, threading.Semaphore(0)

    def away() -> object:
        failures.release()
        raise LedgerError("the database is away")

    monkeypatch.setattr(database, "write", away)
    log = CallLog(database)
    log.note(record(1))
    for _ in range(3):
        assert failures.acquire(timeout=60)
    monkeypatch.setattr(database, "write", really)
    log.note(record(2))
    log.close()
    assert tokens(settings) == [1, 2]
    assert caplog.text.count("records of calls to providers wait") == 1


def test_what_cannot_be_written_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    log = CallLog.open(settings)
    log.note(record(1))

    def away(_: CallLog) -> None:
        raise LedgerError("away")

    monkeypatch.setattr(CallLog, "_write", away)
    with pytest.raises(LedgerError):
        log.close()


def test_old_records_go(settings: Settings) -> None:
    with closing(CallLog.open(settings)) as log:
        for days in range(5):
            log.note(record(days, NOW - timedelta(days=days)))
    assert purge_calls(settings, NOW - timedelta(days=2)) == 2
    assert sorted(tokens(settings)) == [0, 1, 2]
