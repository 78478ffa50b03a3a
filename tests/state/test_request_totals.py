"""Figures over the whole ledger, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.state.plans import plan_of
from tests.state.rows import START, row
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.ledger import IDS_TOGETHER, RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow
from vectorize_pipelines.state.request_totals import DURATION_BOUNDS, RequestSums, RequestTotals

#: State, vectors, and the microseconds that it took; None: its times are not known.
REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(RequestState),
        st.integers(0, 2**40),
        st.none()
        | st.integers(0, 4_000_000_000)
        | st.sampled_from([round(bound * 1e6) + off for bound in DURATION_BOUNDS for off in (-1, 0, 1)]),
    ),
    max_size=12,
)


@pytest.fixture
def totals(installation: Settings) -> Iterator[RequestTotals]:
    with closing(RequestTotals.open(installation)) as totals:
        yield totals


@pytest.fixture
def ledger(installation: Settings) -> Iterator[RequestLedger]:
    with closing(RequestLedger.open(installation)) as ledger:
        yield ledger


def request(number: int, state: RequestState, vectors: int, taken: int | None) -> RequestRow:
    return replace(
        row(f"request-{number}", state),
        vectors=vectors,
        started_at=START if taken is not None else None,
        finished_at=None if taken is None else START + timedelta(microseconds=taken),
    )


@hypothesis_settings(max_examples=40)
@given(REQUESTS)
@pytest.mark.slow
def test_the_sums_are_those_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, requests: list[tuple[RequestState, int, int | None]]
) -> None:
    settings = load_settings(home=tmp_path_factory.mktemp("home"))
    with closing(RequestLedger.open(settings)) as ledger, closing(RequestTotals.open(settings)) as totals:
        ledger.record([request(number, *each) for number, each in enumerate(requests)])
        check(totals, requests)


def check(totals: RequestTotals, requests: list[tuple[RequestState, int, int | None]]) -> None:
    timed = [taken for state, _, taken in requests if state is RequestState.COMPLETED and taken is not None]
    bounds = [0.0, *DURATION_BOUNDS]
    classes = [0] * len(bounds)
    for taken in timed:
        classes[sum(taken / 1e6 > bound for bound in DURATION_BOUNDS)] += 1
    sums = totals.sums()
    assert sums.vectors == sum(vectors for _, vectors, _ in requests)
    assert sums.durations == tuple(classes)
    assert sums.timed == len(timed)
    assert sums.seconds == pytest.approx(sum(timed) / 1e6)
    assert totals.waiting() == sum(state is RequestState.PENDING for state, _, _ in requests)


def test_both_databases_add_alike(ledger: RequestLedger, totals: RequestTotals) -> None:
    assert totals.sums() == RequestSums(0, (0,) * (len(DURATION_BOUNDS) + 1), 0.0)
    totals.ping()
    requests: list[tuple[RequestState, int, int | None]] = [
        (RequestState.COMPLETED, 2**40, 100_000),
        (RequestState.COMPLETED, 3, 100_001),
        (RequestState.COMPLETED, 5, None),
        (RequestState.COMPLETED, 7, 3_600_000_000),
        (RequestState.FAILED, 1, 250_000),
        (RequestState.PENDING, 0, None),
    ]
    ledger.record([request(number, *each) for number, each in enumerate(requests)])
    check(totals, requests)


def test_a_database_that_is_broken_is_said_to_be(home: Path) -> None:
    settings = load_settings()
    with closing(RequestTotals.open(settings)) as totals:
        (file,) = settings.home.glob("**/vectorize.db")
        for each in file.parent.glob("vectorize.db*"):
            each.write_bytes(b"this is no database" * 1000)
        for ask in (totals.sums, totals.waiting, totals.ping):
            with pytest.raises(LedgerError):
                ask()


def test_many_requests_are_asked_for_at_once(ledger: RequestLedger) -> None:
    rows = [row(f"request-{number}") for number in range(IDS_TOGETHER * 2 + 1)]
    odd = row("half \ud800 a character")
    ledger.record([*rows, odd])
    assert ledger.get_many([]) == {}
    assert ledger.get_many(["nobody's", rows[3].request_id]) == {rows[3].request_id: rows[3]}
    found = ledger.get_many([each.request_id for each in (*rows, odd)])
    assert found.keys() == {each.request_id for each in (*rows, odd)}
    assert found[odd.request_id].vectors == odd.vectors


def test_counting_by_type_sorts_nothing(installation: Settings, totals: RequestTotals) -> None:
    plan = plan_of(installation, totals.counts_by_type)
    assert "vectorize_requests_by_task_type" in plan
    assert "TEMP B-TREE" not in plan


def test_counts_by_type(ledger: RequestLedger, totals: RequestTotals) -> None:
    assert totals.counts_by_type() == {}
    noted = [
        ("a", RequestState.FAILED),
        ("a", RequestState.FAILED),
        ("b", RequestState.FAILED),
        (None, RequestState.PENDING),
    ]
    ledger.record([replace(row(f"t{n}", state), task_type=kind) for n, (kind, state) in enumerate(noted)])
    assert totals.counts_by_type() == {
        ("a", RequestState.FAILED): 2,
        ("b", RequestState.FAILED): 1,
        (None, RequestState.PENDING): 1,
    }


def test_how_many_wait_before_one(ledger: RequestLedger, totals: RequestTotals) -> None:
    waiting = [replace(row(f"w{n}", RequestState.PENDING, submitted=n // 2), task_type="a") for n in range(8)]
    other = replace(row("other", RequestState.PENDING), task_type="b")
    done = replace(row("done"), task_type="a")
    ledger.record([*waiting, other, done, row("untyped", RequestState.PENDING)])
    assert [totals.waiting_before(each, 100) for each in waiting] == [0, 0, 2, 2, 4, 4, 6, 6]
    assert totals.waiting_before(waiting[7], 5) == 5
    assert totals.waiting_before(replace(waiting[7], task_type=None), 5) == 1


def test_rates_leave_out_the_time_in_which_nothing_was_done(ledger: RequestLedger, totals: RequestTotals) -> None:
    """Two side by side for 2 s, a day of nothing, one for 1 s."""
    ledger.record(
        [
            row("a", submitted=0, finished=2),
            row("b", submitted=1, finished=2),
            row("c", submitted=86_400, finished=86_401),
            row("d", RequestState.PENDING, submitted=9),
            row("e", RequestState.FAILED, submitted=9, finished=99),
            row("f", submitted=9),
            row("g", submitted=9, finished=9, modality=Modality.IMAGE),
        ]
    )
    rates = totals.rates()
    assert set(rates) == {Modality.TEXT, Modality.IMAGE}
    text = rates[Modality.TEXT]
    assert (text.requests, text.items, text.vectors) == (3, 6, 9)
    assert text.busy_seconds == pytest.approx(3)
    assert text.mean_seconds == pytest.approx(4 / 3)
    assert text.requests_per_second == pytest.approx(1)
    assert rates[Modality.IMAGE].requests_per_second is None
