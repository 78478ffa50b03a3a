"""The locks of runs that bring a collection up to date with its files: the whole of it, or each run a shard.

A run over the whole and runs over shards keep each other out; so do two runs over one shard, and over shards of
different counts, which may own the same file. Shards of one count go on side by side.

Each run comes by the collection's own lock. One over the whole keeps it, and waits until no shard's is held. One over
a shard takes the shard's lock meanwhile, and gives the other one back when it has looked at what it finds.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from filelock import FileLock, Timeout

from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.errors import StateError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import home

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2


class CollectionLock:
    """A lock that `hold` has taken.

    is_alone  whether no other run over files of the collection is at work, and none begins before `let_others_begin`
    """

    def __init__(self, collection_lock: FileLock, *, is_alone: bool, is_whole: bool):
        self.is_alone = is_alone
        self._collection_lock = collection_lock
        self._is_whole = is_whole

    def let_others_begin(self) -> None:
        """Let runs over other shards begin; does nothing where the lock is that of the whole."""
        if not self._is_whole:
            self._collection_lock.release()


@contextmanager
def hold(settings: Settings, collection: str, shard: Shard) -> Iterator[CollectionLock]:
    """Hold the lock of a shard, or of the whole, of a collection; waits for a run that has the same, or the other.

    Raises `StateError` where runs over another count of shards are at work.
    """
    file = home.manifest_lock(settings, collection)
    file.parent.mkdir(parents=True, exist_ok=True)
    collection_lock = FileLock(file, thread_local=False)
    with ExitStack() as held:
        _acquire(collection_lock, f"the collection {collection}")
        held.callback(collection_lock.release, force=True)
        if shard.is_whole:
            _wait_for_shards(settings, collection)
            others: list[Shard] = []
        else:
            others = _take_shard(settings, collection, shard, collection_lock, held)
        yield CollectionLock(collection_lock, is_alone=not others, is_whole=shard.is_whole)


def _take_shard(
    settings: Settings, collection: str, shard: Shard, collection_lock: FileLock, held: ExitStack
) -> list[Shard]:
    """Take the lock of a shard while the collection's is held; return the other shards that runs are at work on."""
    file = home.shard_lock(settings, collection, str(shard))
    file.parent.mkdir(parents=True, exist_ok=True)
    own = FileLock(file, thread_local=False)
    while True:
        others = [each for each in shards_at_work(settings, collection) if each != shard]
        if any(each.count != shard.count for each in others):
            at_work = ", ".join(map(str, others))
            raise StateError(
                f"the shards {at_work} of the collection {collection} are being brought up to date, and {shard} would "
                f"own some of their files: use the same count of shards, or try again once these runs have ended"
            )
        try:
            own.acquire(timeout=0)
        except Timeout:
            collection_lock.release()  # nobody waits for a shard with the collection in hand
            _acquire(own, f"the shard {shard} of the collection {collection}")
            own.release()
            _acquire(collection_lock, f"the collection {collection}")
        else:
            held.callback(own.release, force=True)
            return others


def shards_at_work(settings: Settings, collection: str) -> list[Shard]:
    """Return the shards of a collection whose locks are held."""
    folder = home.shard_lock(settings, collection, "").parent
    found = (Shard.parse(file.stem.replace("-of-", "/")) for file in sorted(folder.glob("*-of-*.lock")))
    return [shard for shard in found if _is_held(FileLock(home.shard_lock(settings, collection, str(shard))))]


def _wait_for_shards(settings: Settings, collection: str) -> None:
    told = False
    while at_work := shards_at_work(settings, collection):
        if not told:
            shown = ", ".join(map(str, at_work))
            logger.info("the shards %s of %s are being brought up to date; waiting for them to end", shown, collection)
            told = True
        time.sleep(POLL_SECONDS)


def _acquire(lock: FileLock, what: str) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another run is bringing %s up to date; waiting for it to end (%s)", what, lock.lock_file)
        lock.acquire(poll_interval=POLL_SECONDS)


def _is_held(lock: FileLock) -> bool:
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
