"""Figures over the ledger, as routes show them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.state.rows import row
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.monitoring import figures as figures_module
from vectorize_pipelines.gateway.monitoring.figures import LedgerFigures, Since
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_totals import DURATION_BOUNDS, RequestSums, RequestTotals


@pytest.fixture
def ledger(settings: Settings) -> Iterator[RequestLedger]:
    with closing(RequestLedger.open(settings)) as opened:
        yield opened


@asynccontextmanager
async def figures_of(settings: Settings) -> AsyncIterator[LedgerFigures]:
    with closing(RequestTotals.open(settings)) as totals:
        async with LedgerFigures(totals) as figures:
            yield figures


def test_counts(settings: Settings, ledger: RequestLedger) -> None:
    async def scenario() -> None:
        async with figures_of(settings) as figures:
            assert (await figures.counts()).value == dict.fromkeys(RequestState, 0)
            noted = [replace(row("a", RequestState.FAILED), task_type="x"), row("b"), replace(row("c"), task_type="y")]
            ledger.record(noted)
            assert {state: number for state, number in (await figures.counts()).value.items() if number} == {
                RequestState.COMPLETED: 2,
                RequestState.FAILED: 1,
            }
            assert (await figures.counts("x")).value[RequestState.FAILED] == 1
            assert sum((await figures.counts("z")).value.values()) == 0

    asyncio.run(scenario())


def test_estimates(settings: Settings, ledger: RequestLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four requests a second."""

    async def scenario() -> None:
        async with figures_of(settings) as figures:
            waiting = [replace(row(f"w{n}", RequestState.PENDING, submitted=n), task_type="x") for n in range(8)]
            ledger.record(waiting)
            assert await figures.seconds_until_done(waiting[7]) is None
            assert await figures.seconds_behind_all(Modality.TEXT, "x") is None
            ledger.record([row(f"d{n}", submitted=n / 4, finished=(n + 1) / 4) for n in range(20)])
            assert await figures.seconds_until_done(waiting[0]) == 0.2
            assert await figures.seconds_until_done(waiting[7]) == 2.0
            assert await figures.seconds_behind_all(Modality.TEXT, "x") == 2.2
            assert await figures.seconds_behind_all(Modality.IMAGE, "x") is None
            monkeypatch.setattr(figures_module, "MOST_COUNTED", 2)
            assert await figures.seconds_until_done(waiting[1]) == 0.5, "few enough to be counted"
            assert await figures.seconds_until_done(waiting[3]) == 2.0, "all that wait"

    asyncio.run(scenario())


CLASSES = len(DURATION_BOUNDS) + 1
SUMS = st.builds(
    RequestSums,
    st.integers(0, 100),
    st.tuples(*[st.integers(0, 5)] * CLASSES),
    st.integers(0, 100).map(float),
)


def parts(sums: RequestSums) -> list[float]:
    return [sums.vectors, *sums.durations, sums.seconds]


@given(st.lists(SUMS, min_size=1, max_size=8))
def test_what_has_grown_never_shrinks_and_is_all_where_nothing_was_cleaned_up(seen: list[RequestSums]) -> None:
    since = Since()
    grown = [since.take(sums) for sums in seen]
    assert parts(grown[0]) == [0] * (CLASSES + 2)
    for before, after, old, new in zip(grown, grown[1:], seen, seen[1:], strict=False):
        for number, step in enumerate(parts(new)):
            expected = max(0, step - parts(old)[number])
            assert parts(after)[number] == parts(before)[number] + expected
