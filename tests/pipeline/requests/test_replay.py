"""Replays of days on a real broker: whatever is replayed, and however often, the store is as the messages have it."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.pipeline.requests.installation import Installation, batch_request, clock_of_yesterday, text_request
from vectorize_pipelines.kafka import sources as kafka
from vectorize_pipelines.pipeline.requests import runs as request_runs
from vectorize_pipelines.pipeline.requests.runs import ReplayRequest, open_replay
from vectorize_pipelines.pipeline.writing import DirectWriter, written

#: Of messages of "today": midnight may pass before they are sent.
NOW = datetime.now(UTC)
PAST = [NOW.replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=number) for number in (30, 29, 28)]


def send_past_days(installation: Installation) -> None:
    """Three days of messages, as if a sender had caught up; what is of one day does not lie together."""
    for number in range(60):
        at = PAST[number % 3] + timedelta(seconds=number)
        installation.send(text_request(f"t{number}", f"text {number}"), at=at, priority=number % 7 == 0)
    installation.send(batch_request("b", ["one", "two", "three"]), at=PAST[0])
    installation.send(batch_request("b", ["one", "other"]), at=PAST[2])
    installation.send(None, key=b"t3", at=PAST[2])
    installation.send(b"poison", at=PAST[1])
    installation.send(text_request("today", "of today"), at=NOW)


def test_past_days_twice_end_in_the_same_store(installation: Installation) -> None:
    send_past_days(installation)
    first = installation.replay(PAST[0].date(), PAST[2].date())
    rows = installation.rows()
    assert len(rows) == 59 + 2
    assert {row["partition"] for row in rows.values()} == {day.date().isoformat() for day in PAST}
    assert first.touched == {day.date().isoformat() for day in PAST}
    second = installation.replay(PAST[0].date(), PAST[2].date())
    assert installation.rows() == rows, "in every column, run and time of embedding included"
    assert second.totals.sum().encoded == 0
    assert not installation.events()
    assert not installation.letters()
    assert all(committed < 0 for committed, _ in installation.outstanding().values()), "nothing was committed"


def test_any_order_of_days_and_a_drain_end_in_the_same_rows(installation: Installation) -> None:
    send_past_days(installation)
    for day in (PAST[2], PAST[0], PAST[1], PAST[0]):
        installation.replay(day.date(), day.date())
    expected = installation.texts()
    assert ("t3", 0) not in expected
    assert expected["b", 1] == "other"
    replayed = installation.rows()
    installation.drain()
    assert installation.texts() == {**expected, ("today", 0): "of today"}
    assert {place: row for place, row in installation.rows().items() if place in replayed} == replayed
    assert not installation.outstanding()
    assert len(installation.letters()) == 1


def test_what_lies_in_the_future_stays_of_the_last_day_though_midnight_passes(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    yesterday = clock_of_yesterday()
    day = yesterday.now().date()
    installation.send(text_request("t", "a boat"))
    request = ReplayRequest(installation.modality, "run", (day, day))
    with monkeypatch.context() as before_midnight:
        for module in (request_runs, kafka):
            before_midnight.setattr(module, "datetime", yesterday)
        stream = open_replay(installation.settings, request, installation.store, installation.lease)
    with stream:
        for _ in written(DirectWriter(installation.settings, installation.store), stream):
            pass
    assert stream.touched == {day.isoformat()}
    assert installation.rows()["t", 0]["partition"] == day.isoformat()


def test_force_encodes_again(installation: Installation) -> None:
    send_past_days(installation)
    installation.replay()
    assert installation.replay().totals.sum().encoded == 0
    assert installation.replay(force=True).totals.sum().encoded > 0


def test_a_window_takes_only_its_own_days(installation: Installation) -> None:
    send_past_days(installation)
    installation.replay(PAST[1].date(), PAST[1].date())
    assert {row["partition"] for row in installation.rows().values()} == {PAST[1].date().isoformat()}
    installation.replay(NOW.date(), NOW.date())
    assert installation.texts()["today", 0] == "of today"
