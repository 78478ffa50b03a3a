"""The locks of a collection and of its shards, with either database."""

import threading

import pytest

from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.errors import SettingsError, StateError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.collection_locks import MOST_SHARDS, hold

COLLECTION = "corpus"


def begun(settings: Settings, shard: Shard, log: pytest.LogCaptureFixture) -> tuple[threading.Thread, threading.Event]:
    """A thread that waits for a lock, and has said so; the event is set once it has it."""
    had = threading.Event()

    def take() -> None:
        with hold(settings, COLLECTION, shard):
            had.set()

    thread = threading.Thread(target=take)
    log.clear()
    thread.start()
    while "waiting for" not in log.text:
        assert thread.is_alive()
        thread.join(0.02)
    assert not had.is_set()
    return thread, had


def test_shards_of_one_count_are_held_side_by_side(installation: Settings) -> None:
    with hold(installation, COLLECTION, Shard(0, 3)) as first:
        assert first.is_alone
        first.let_others_begin()
        with hold(installation, COLLECTION, Shard(2, 3)) as second, hold(installation, "another", WHOLE) as other:
            assert (second.is_alone, other.is_alone) == (False, True)
            first.check()
            second.check()
    with hold(installation, COLLECTION, Shard(1, 2)) as later:
        assert later.is_alone, "nothing is left of shards that have ended"


def test_shards_of_another_count_are_refused(installation: Settings) -> None:
    with hold(installation, COLLECTION, Shard(0, 3)) as lock:
        lock.let_others_begin()
        with pytest.raises(StateError, match="0/3"), hold(installation, COLLECTION, Shard(0, 2)):
            pytest.fail("both own some of the same files")
    with pytest.raises(SettingsError, match="at most"), hold(installation, COLLECTION, Shard(0, MOST_SHARDS + 1)):
        pytest.fail("there are too many")


@pytest.mark.parametrize(
    ("holding", "waiting"), [(WHOLE, Shard(1, 2)), (Shard(1, 2), WHOLE), (Shard(1, 2), Shard(1, 2)), (WHOLE, WHOLE)]
)
def test_what_overlaps_is_waited_for(
    installation: Settings, holding: Shard, waiting: Shard, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vectorize_pipelines")
    with hold(installation, COLLECTION, holding) as lock:
        lock.let_others_begin()
        thread, had = begun(installation, waiting, caplog)
    thread.join(120)
    assert had.is_set()


def test_others_begin_once_who_was_alone_lets_them(installation: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="vectorize_pipelines")
    with hold(installation, COLLECTION, Shard(0, 2)) as lock:
        thread, had = begun(installation, Shard(1, 2), caplog)
        lock.let_others_begin()
        thread.join(120)
        assert had.is_set()
