"""What looks into the ledger find."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.live import sources
from vectorize_pipelines.gateway.live.sources import changes, look_into
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow

START = datetime(2026, 3, 1, tzinfo=UTC)
#: So many requests of each kind one look reads; fewer than there are.
WINDOW = 3
#: What happens between two looks: a request is submitted, taken up, ends; old ones are forgotten.
STEPS = st.lists(st.lists(st.sampled_from(["submit", "take up", "end", "purge"]), min_size=1, max_size=2), max_size=25)


@contextmanager
def opened_ledger() -> Iterator[RequestLedger]:
    with TemporaryDirectory() as folder:
        ledger = RequestLedger.open(load_settings(home=Path(folder)))
        yield ledger
        ledger.close()


@dataclass
class World:
    """Requests, of which never more than a look sees are under way, and what has become of them."""

    ledger: RequestLedger
    now: datetime = START
    rows: dict[str, RequestRow] = field(default_factory=dict)
    touched: dict[str, RequestState] = field(default_factory=dict)

    def step(self, action: str) -> None:
        self.now += timedelta(seconds=1)
        under_way = [row for row in self.rows.values() if not row.state.is_final]
        if action == "submit" and len(under_way) < WINDOW:
            self._note(new_row(f"request-{len(self.rows):03}", self.now))
        elif action == "take up":
            for row in [each for each in under_way if each.state is RequestState.PENDING][:1]:
                self._note(replace(row, state=RequestState.PROCESSING, started_at=self.now, run_id="run"))
        elif action == "end" and under_way:
            self._note(replace(under_way[-1], state=RequestState.COMPLETED, finished_at=self.now))
        elif action == "purge":
            self.ledger.purge(self.now - timedelta(seconds=10))

    def _note(self, row: RequestRow) -> None:
        self.rows[row.request_id] = row
        self.ledger.record([row])
        self.touched[row.request_id] = row.state


def new_row(request_id: str, now: datetime) -> RequestRow:
    return RequestRow(
        request_id=request_id,
        state=RequestState.PENDING,
        modality=Modality.TEXT,
        submitted_at=now,
        topic="",
        partition=0,
        offset=0,
        timestamp_ms=int(now.timestamp() * 1000),
    )


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
@pytest.mark.slow
def test_each_change_is_told_once_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch, steps: list[list[str]]) -> None:
    monkeypatch.setattr(sources, "UNDER_WAY", WINDOW)
    monkeypatch.setattr(sources, "ENDED", WINDOW)
    with opened_ledger() as ledger:
        world, last = World(ledger), look_into(ledger, None)
        for step in steps:
            world.touched.clear()
            for action in step:
                world.step(action)
            look = look_into(ledger, last)
            told = changes(last, look)
            assert {row.request_id: row.state for row in told} == world.touched
            assert len(told) == len(world.touched)
            last = look


def test_a_request_that_is_sent_again_is_told_again() -> None:
    with opened_ledger() as ledger:
        row = replace(new_row("one", START), state=RequestState.COMPLETED, finished_at=START, started_at=START)
        ledger.record([row])
        last = look_into(ledger, None)
        assert changes(last, look_into(ledger, last)) == []
        again = replace(row, timestamp_ms=row.timestamp_ms + 1)
        ledger.record([again])
        assert changes(last, look_into(ledger, last)) == [again]
