"""The rows follow from the messages alone: from no order of runs, no size of batches, no run that was cut off."""

import contextlib
import random
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.pipeline.requests.histories import (
    NORMAL,
    PRIORITY,
    TAKEN,
    CutOffError,
    Faults,
    Sent,
    World,
    day,
    expected_rows,
    settings_in,
)

pytestmark = pytest.mark.slow

DAYS = 3
TEXTS = ("a boat", "the sea", "a harbour", "wind", "rain")

sent = st.builds(
    Sent,
    task_id=st.sampled_from(["a", "b", "c"]),
    lane=st.sampled_from([NORMAL, NORMAL, PRIORITY]),
    partition=st.integers(0, 1),
    day=st.integers(0, DAYS - 1),
    milliseconds=st.integers(0, 2),
    texts=st.one_of(st.none(), st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4).map(tuple)),
    collection=st.sampled_from([None, None, None, "other", TAKEN]),
    metadata=st.sampled_from([{}, {"tenant": "x"}]),
    raw=st.sampled_from([None] * 9 + [b"no request"]),
)
windows = st.tuples(st.integers(0, DAYS - 1), st.integers(0, DAYS - 1)).map(lambda pair: (min(pair), max(pair)))
cuts = st.one_of(st.none(), st.integers(0, 40))
steps = st.one_of(
    st.tuples(st.just("send"), st.lists(sent, min_size=1, max_size=8)),
    st.tuples(st.just("drain"), cuts),
    st.tuples(st.just("replay"), windows, cuts),
    st.tuples(st.just("both"), windows, cuts, cuts),
)


def cut_off(run: Any, *arguments: Any) -> None:
    with contextlib.suppress(CutOffError):
        run(*arguments)


def perform(world: World, step: tuple[Any, ...], chance: random.Random) -> None:
    """One step of a history; a run that is cut off is left as it is."""
    kind, *arguments = step
    if kind == "send":
        for each in arguments[0]:
            world.log.append(each)
    elif kind == "drain":
        cut_off(world.drain, chance, Faults(arguments[0]))
    elif kind == "replay":
        first, last = arguments[0]
        cut_off(world.replay, (day(first), day(last)), chance, Faults(arguments[1]))
    else:
        (first, last), drain_cut, replay_cut = arguments
        errors: list[BaseException] = []

        def replay() -> None:
            try:
                cut_off(world.replay, (day(first), day(last)), random.Random(1), Faults(replay_cut))
            except BaseException as error:  # noqa: BLE001 (raised in the test's thread)
                errors.append(error)

        thread = threading.Thread(target=replay)
        thread.start()
        try:
            cut_off(world.drain, chance, Faults(drain_cut))
        finally:
            thread.join()
        assert not errors, errors


def check_settled(world: World, chance: random.Random) -> None:
    """After a drain that was not cut off the rows are those of the messages, and nothing that follows changes them."""
    world.drain(chance)
    assert not world.log.outstanding()
    assert world.without_lineage() == expected_rows(world.log, world.settings)
    before = world.rows()
    events, letters = list(world.log.events), list(world.log.letters)
    world.replay((day(0), day(DAYS)), chance)
    world.drain(chance)
    assert world.rows() == before
    assert (world.log.events, world.log.letters) == (events, letters)


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(history=st.lists(steps, min_size=1, max_size=8), seed=st.integers(0, 2**16))
def test_any_history_and_any_order_of_runs_end_in_the_same_rows(history: list[tuple[Any, ...]], seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        world = World(settings_in(folder))
        for step in history:
            perform(world, step, chance)
        check_settled(world, chance)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(settings_in(str(tmp_path)))


def one_by_one() -> random.Random:
    """Has the log give one message at a time, in the order of their sending where they lie in one partition."""

    class First(random.Random):
        def randint(self, a: int, b: int) -> int:
            return a

    return First(0)


def test_a_deletion_reaches_rows_in_another_collection_that_are_still_on_their_way(world: World) -> None:
    for n in range(20):
        world.log.append(Sent(f"t{n}", NORMAL, 0, 0, 0, ("a boat",), collection="other"))
        world.log.append(Sent(f"t{n}", NORMAL, 0, 0, 1, None))
    check_settled(world, one_by_one())
    assert not [place for place in world.rows() if place[0] == "other"]


def test_a_deletion_and_a_replay_of_what_it_deletes_side_by_side(world: World) -> None:
    for n in range(30):
        world.log.append(Sent(f"t{n}", NORMAL, 0, 0, 0, ("a boat",), collection="other"))
    world.log.committed.update({(NORMAL, 0): 30})
    for n in range(30):
        world.log.append(Sent(f"t{n}", NORMAL, 0, 0, 1, None))
    chance = one_by_one()
    perform(world, ("both", (0, DAYS), None, None), chance)
    check_settled(world, chance)
