"""The locks of runs that bring a collection up to date with its files: the whole of it, or each run a shard.

A run over the whole and runs over shards keep each other out; so do two runs over one shard, and over shards of
different counts, which may own the same file. Shards of one count go on side by side.

Each run comes by the collection's own lock. One over the whole keeps it, and waits until no shard's is held. One over
a shard takes the shard's lock meanwhile, and gives the other one back when it has looked at what it finds.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager

from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.errors import SettingsError, StateError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import home
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.state.locks import exclusive, is_held

logger = logging.getLogger(__name__)

MOST_SHARDS = 256
POLL_SECONDS = 0.2


class CollectionLock(ExclusiveLock):
    """A lock that `hold` has taken.

    is_alone  whether no other run over files of the collection is at work, and none begins before `let_others_begin`
    """

    def __init__(self, own: ExclusiveLock, entering: ExitStack, *, is_alone: bool):
        self.is_alone = is_alone
        self._own = own
        self._entering = entering

    def check(self) -> None:
        """Raise `LedgerError` if the lock of the shard, or of the whole, is lost."""
        self._own.check()

    def let_others_begin(self) -> None:
        """Let runs over other shards begin; does nothing where the lock is that of the whole."""
        self._entering.close()


@contextmanager
def hold(settings: Settings, collection: str, shard: Shard) -> Iterator[CollectionLock]:
    """Hold the lock of a shard, or of the whole, of a collection; waits for a run that has the same, or the other.

    Raises `StateError` where runs over another count of shards are at work, `SettingsError` where there are more than
    `MOST_SHARDS`, `LedgerError` where the database fails, and after the body where the lock was lost meanwhile.
    """
    if shard.count > MOST_SHARDS:
        raise SettingsError(f"{shard}: a folder or bucket has at most {MOST_SHARDS} shards")
    with closing(Database.open(settings)) as database:
        locks = _CollectionLocks(settings, database, collection)
        if shard.is_whole:
            with locks.of_collection() as own:
                locks.wait_for_shards()
                yield CollectionLock(own, ExitStack(), is_alone=True)
            return
        with ExitStack() as entering, ExitStack() as held_shard:
            entering.enter_context(locks.of_collection())
            while not locks.can_be_taken(shard):
                entering.close()  # nobody waits for a shard with the collection in hand
                with locks.of_shard(shard):
                    pass
                entering.enter_context(locks.of_collection())
            own = held_shard.enter_context(locks.of_shard(shard))
            yield CollectionLock(own, entering, is_alone=locks.at_work() == [shard])


class _CollectionLocks:
    """The locks of one collection, by name."""

    def __init__(self, settings: Settings, database: Database, collection: str):
        self._settings = settings
        self._database = database
        self._collection = collection
        self._prefix = f"files/{collection}"

    def of_collection(self) -> AbstractContextManager[ExclusiveLock]:
        """Wait for the collection's own lock."""
        file = home.manifest_lock(self._settings, self._collection)
        what = f"the files of collection {self._collection}"
        if is_held(self._database, self._prefix, file):
            logger.info("another run holds %s; waiting for it", what)
        return exclusive(self._database, self._prefix, file, what)

    def of_shard(self, shard: Shard) -> AbstractContextManager[ExclusiveLock]:
        """Wait for the lock of a shard."""
        file = home.shard_lock(self._settings, self._collection, str(shard))
        name, what = self._name(shard), f"shard {shard} of the files of collection {self._collection}"
        if is_held(self._database, name, file):
            logger.info("another run holds %s; waiting for it", what)
        return exclusive(self._database, name, file, what)

    def can_be_taken(self, shard: Shard) -> bool:
        """Return whether the lock of a shard is free; called with the collection's in hand.

        Raises `StateError` where it has to be refused.
        """
        at_work = self.at_work()
        if any(each.count != shard.count for each in at_work):
            shown = ", ".join(map(str, at_work))
            raise StateError(
                f"the shards {shown} of the collection {self._collection} are being brought up to date, and {shard} "
                f"would own some of their files: use the same count of shards, or try again once these runs have ended"
            )
        return shard not in at_work

    def at_work(self) -> list[Shard]:
        """Return the shards whose locks are held."""
        if not self._database.is_sqlite:
            from vectorize_pipelines.state import leases

            prefix = f"{self._prefix}/"
            return [Shard.parse(name.removeprefix(prefix)) for name in leases.held_below(self._database, prefix)]
        folder = home.shard_lock(self._settings, self._collection, "0/1").parent
        found = {file: Shard.parse(file.stem.replace("-of-", "/")) for file in sorted(folder.glob("*-of-*.lock"))}
        return [each for file, each in found.items() if is_held(self._database, self._name(each), file)]

    def wait_for_shards(self) -> None:
        """Wait until no shard's lock is held."""
        told = False
        while at_work := self.at_work():
            if not told:
                shown = ", ".join(map(str, at_work))
                logger.info("other runs hold the shards %s of %s; waiting for them", shown, self._collection)
                told = True
            time.sleep(POLL_SECONDS)

    def _name(self, shard: Shard) -> str:
        return f"{self._prefix}/{shard}"
