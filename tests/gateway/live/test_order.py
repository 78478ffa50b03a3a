"""No client sees a request go back."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.live.order import EventOrder, leads_on
from vectorize_pipelines.messaging.events import ResultEvent

START = datetime(2026, 3, 1, tzinfo=UTC)
RANK = {RequestState.PENDING: 0, RequestState.PROCESSING: 1, RequestState.FAILED: 2, RequestState.COMPLETED: 2}


def event(version: int, second: int, state: RequestState, run: str) -> ResultEvent:
    """An event of one of several messages with the same id, each of which was sent after the last one had ended."""
    return ResultEvent(
        "one", state, "texts", 0, None, f"{run}{version}", START + timedelta(seconds=10 * version + second)
    )


#: What runs say of three messages with the same id; the first run of each is killed, and another one takes over.
SAID = [
    said
    for version in range(3)
    for said in (
        event(version, 1, RequestState.PROCESSING, "killed"),
        event(version, 2, RequestState.PROCESSING, "run"),
        event(version, 3, RequestState.COMPLETED if version != 1 else RequestState.FAILED, "run"),
    )
]


def version_of(said: ResultEvent) -> int:
    return (said.timestamp - START) // timedelta(seconds=10)


@given(st.lists(st.sampled_from(SAID), max_size=25))
def test_late_and_repeated_events_never_lead_back(said: list[ResultEvent]) -> None:
    order = EventOrder()
    told = [each for each in said if order.admits(each)]
    for version in range(3):
        ranks = [RANK[each.status] for each in told if version_of(each) == version]
        assert ranks == sorted(ranks)
    final = {each.timestamp for each in said if each.status.is_final}
    assert final == {each.timestamp for each in told if each.status.is_final}


@given(st.sets(st.sampled_from(range(len(SAID)))))
def test_events_in_their_order_are_all_told(places: set[int]) -> None:
    order = EventOrder()
    assert all(order.admits(SAID[place]) for place in sorted(places))


@given(st.lists(st.tuples(st.sampled_from(["one", "two"]), st.sampled_from(SAID)), max_size=25))
def test_requests_do_not_meddle_with_each_other(said: list[tuple[str, ResultEvent]]) -> None:
    def of(task_id: str, each: ResultEvent) -> ResultEvent:
        return ResultEvent(task_id, each.status, run_id=each.run_id, timestamp=each.timestamp)

    together, alone = EventOrder(), {"one": EventOrder(), "two": EventOrder()}
    for task_id, each in said:
        assert together.admits(of(task_id, each)) == alone[task_id].admits(of(task_id, each))


def test_what_was_touched_longest_ago_is_forgotten() -> None:
    order = EventOrder(remembered=1)
    late, final = SAID[1], SAID[2]
    assert order.admits(final)
    assert not order.admits(late)
    assert order.admits(ResultEvent("another", RequestState.COMPLETED, timestamp=START))
    assert order.admits(late)


@given(
    st.lists(
        st.builds(
            ResultEvent,
            st.just("one"),
            st.sampled_from(list(RANK)),
            run_id=st.sampled_from([None, "a", "b"]),
            timestamp=st.just(START),
        ),
        min_size=1,
    )
)
def test_the_client_of_one_request_never_sees_it_go_back_nor_the_same_twice(said: list[ResultEvent]) -> None:
    told = said[:1]
    for each in said[1:]:
        if not told[-1].status.is_final and leads_on(each, told[-1]):
            told.append(each)
    ranks = [RANK[each.status] for each in told]
    assert ranks == sorted(ranks)
    assert ranks.count(2) <= 1
    assert all((a.status, a.run_id) != (b.status, b.run_id) for a, b in pairwise(told))
    assert (2 in ranks) == any(each.status.is_final for each in said)
