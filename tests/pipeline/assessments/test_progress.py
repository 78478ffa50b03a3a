"""What a partition's committed offset and its metadata say is exactly what is done."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.pipeline.assessments.progress import (
    MOST_BLOCKS,
    MOST_CHARACTERS,
    FinishedOffsets,
    PartitionProgress,
)

#: Offset 0 is where reading begins; False is no message (a transaction's mark).
_MESSAGES = st.lists(st.booleans(), max_size=120)


@given(_MESSAGES, st.data(), st.integers(0, 10**12))
def test_a_later_run_knows_of_every_message_whether_it_is_done(
    messages: list[bool], data: st.DataObject, begin: int
) -> None:
    progress = PartitionProgress(begin)
    offsets = [begin + number for number, is_message in enumerate(messages) if is_message]
    for offset in offsets:
        progress.read(offset)
    progress.pass_to(begin + len(messages))
    done = data.draw(st.lists(st.sampled_from(offsets), unique=True) if offsets else st.just([]))
    for offset in done:
        progress.finish(offset)
    pending = set(offsets) - set(done)
    assert progress.finished == min(pending, default=begin + len(messages))
    found = FinishedOffsets.parse(progress.finished, progress.metadata())
    for offset in offsets:
        assert (offset < progress.finished or offset in found) == (offset in done)
    assert begin + len(messages) not in found


#: Portions that are read one after another: of each message how far it lies behind the one before.
_PORTIONS = st.lists(
    st.lists(st.one_of(st.integers(1, 3), st.integers(100, 300), st.integers(1, 2**40)), min_size=1, max_size=40),
    max_size=80,
)


@given(_PORTIONS, st.randoms(use_true_random=False), st.integers(0, 2**62), st.integers(0, 2**40))
def test_the_metadata_fit_into_a_commit_whatever_was_read(
    portions: list[list[int]], chance: random.Random, begin: int, gap: int
) -> None:
    """However much lies between the messages, and in whatever order they are done."""
    progress = PartitionProgress(begin)
    offset, pending, done = begin, set[int](), set[int]()
    for portion in portions:
        for step in portion[: progress.room]:
            offset += step
            progress.read(offset)
            pending.add(offset)
        assert len(progress.metadata()) <= MOST_CHARACTERS
        for finished in chance.sample(sorted(pending), chance.randint(0, len(pending))):
            progress.finish(finished)
            pending.remove(finished)
            done.add(finished)
        progress.pass_to(offset + gap)
        metadata = progress.metadata()
        assert len(metadata) <= MOST_CHARACTERS
        found = FinishedOffsets.parse(progress.finished, metadata)
        assert all(each < progress.finished or each in found for each in done)
        assert not any(each < progress.finished or each in found for each in pending)


def test_reading_goes_far_ahead_of_a_slow_message_and_then_waits() -> None:
    progress = PartitionProgress(7)
    offset = 7
    while progress.room:
        progress.read(offset)
        offset += 1
    assert offset > 16_000
    assert len(progress.metadata()) <= MOST_CHARACTERS
    for finished in range(8, offset, 2):
        progress.finish(finished)
    assert progress.finished == 7
    assert len(progress.metadata()) <= MOST_CHARACTERS
    for finished in range(9, offset, 2):
        progress.finish(finished)
    assert progress.room == MOST_BLOCKS - 1, "what is done takes no room"
    progress.pass_to(10**12)
    assert len(progress.metadata()) < 50, "nor does what is no message"


def test_metadata_of_somebody_else_says_that_nothing_is_done() -> None:
    for metadata in (None, "", "reset by hand", "2:no base64!", "2:////", "2:BQEA", "1:AAAA"):
        assert all(offset not in FinishedOffsets.parse(5, metadata) for offset in range(50))


#: Of each run in a row: how many messages it reads before it is killed.
_RUNS = st.lists(st.integers(0, 200), min_size=1, max_size=6)


@given(_RUNS, st.randoms(use_true_random=False), st.integers(0, 2**40))
@pytest.mark.slow
def test_no_run_forgets_what_those_before_it_have_done(runs: list[int], chance: random.Random, begin: int) -> None:
    """However little of it a run reads before it commits something and is killed."""
    messages = [begin + offset for offset in range(400) if chance.random() < 0.8]
    done: set[int] = set()
    committed, metadata = begin, ""
    for count in runs:
        earlier = FinishedOffsets.parse(committed, metadata)
        progress = PartitionProgress(committed, earlier)
        unread = [offset for offset in messages if offset >= committed and offset not in earlier]
        assert done.isdisjoint(unread), "none is dealt with twice"
        taken = unread[:count]
        for offset in taken:
            progress.read(offset)
        if chance.random() < 0.5:
            progress.pass_to(min(unread[count:], default=begin + 403))
        for offset in chance.sample(taken, chance.randint(0, len(taken))):
            progress.finish(offset)
            done.add(offset)
        committed, metadata = progress.finished, progress.metadata()
        assert len(metadata) <= MOST_CHARACTERS
        found = FinishedOffsets.parse(committed, metadata)
        assert {offset for offset in messages if offset < committed or offset in found} == done
