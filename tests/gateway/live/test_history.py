"""Going on from the id of an event."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.live.history import Change, Entry, History, Position
from vectorize_pipelines.messaging.events import ResultEvent

EPOCH = "vectorize.results"
EVENT = ResultEvent("one", RequestState.COMPLETED, timestamp=datetime(2026, 3, 1, tzinfo=UTC))
STARTS = st.dictionaries(st.integers(0, 2), st.integers(0, 3), min_size=1)
#: Partition of each change, and how many offsets lie between it and the one before, as marks of transactions do.
STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12)


def filled(starts: dict[int, int], steps: list[tuple[int, int]], kept: int) -> tuple[History, list[Entry]]:
    """A history of these changes, and all that were ever in it."""
    history, following = History(kept), dict(starts)
    history.begin(EPOCH, starts)
    entries = []
    for partition, gap in steps:
        offset = following.get(partition, 0) + gap
        following[partition] = offset + 1
        entries.append(history.append(Change.of(partition, offset, EVENT)))
    return history, entries


@given(STARTS, STEPS, st.integers(1, 6))
def test_a_client_gets_what_came_after_its_last_event_or_hears_that_this_is_not_known(
    starts: dict[int, int], steps: list[tuple[int, int]], kept: int
) -> None:
    history, entries = filled(starts, steps, kept)
    for got, place in enumerate([str(Position(EPOCH, starts)), *(entry.position for entry in entries)]):
        position = Position.parse(place)
        assert position is not None
        missed = entries[got:]
        assert history.after(position) == (missed if len(missed) <= kept else None)


@given(STARTS, STEPS, st.one_of(st.text(), st.from_regex(r"[a-z.]+/(\d:\d{1,2},?)*", fullmatch=True)))
def test_an_id_that_came_from_nowhere_is_not_gone_on_from(
    starts: dict[int, int], steps: list[tuple[int, int]], text: str
) -> None:
    history, _ = filled(starts, steps, kept=100)
    position = Position.parse(text)
    assert position is None or position.epoch != EPOCH
    assert position is None or history.after(position) is None


@given(STARTS, STEPS, st.integers(0, 3), st.integers(1, 3))
def test_an_id_from_beyond_the_end_is_not_gone_on_from(
    starts: dict[int, int], steps: list[tuple[int, int]], partition: int, beyond: int
) -> None:
    history, _ = filled(starts, steps, kept=100)
    offsets = dict(history.position.offsets)
    offsets[partition] = offsets.get(partition, 0) + beyond
    assert history.after(Position(EPOCH, offsets)) is None


def test_nothing_is_gone_on_from_once_the_history_has_begun_again() -> None:
    history, entries = filled({0: 0}, [(0, 0), (0, 0)], kept=10)
    history.begin("another", {0: 0})
    position = Position.parse(entries[0].position)
    assert position is not None
    assert history.after(position) is None
