"""What a partition's committed offset and its metadata say is exactly what is done."""

from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.pipeline.assessments.progress import (
    MOST_OFFSETS_AHEAD,
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


def test_the_metadata_of_the_widest_span_fits_into_a_commit() -> None:
    progress = PartitionProgress(7)
    offset = 7
    while progress.has_room:
        progress.read(offset)
        offset += 1
    for finished in range(8, offset):
        progress.finish(finished)
    assert offset == 7 + MOST_OFFSETS_AHEAD
    assert progress.finished == 7
    assert len(progress.metadata()) < 4096


def test_metadata_of_somebody_else_says_that_nothing_is_done() -> None:
    for metadata in (None, "", "reset by hand", "1:no base64!", "2:////"):
        assert all(offset not in FinishedOffsets.parse(5, metadata) for offset in range(50))


@given(st.lists(st.integers(0, 40), min_size=1, unique=True))
def test_a_run_goes_on_where_another_ended(done: list[int]) -> None:
    """Its own metadata also tells of what the run before had done."""
    first = PartitionProgress(0)
    for offset in range(41):
        first.read(offset)
    for offset in done:
        first.finish(offset)
    known = FinishedOffsets.parse(first.finished, first.metadata())
    second = PartitionProgress(first.finished)
    for offset in range(first.finished, 41):
        if offset in known:
            second.pass_to(offset + 1)
        else:
            second.read(offset)
    assert second.finished == first.finished
    assert second.metadata() == first.metadata()
