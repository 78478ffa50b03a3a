"""Durability of LanceDB tables: what was written is made durable, and counts no further after a loss of power.

LanceDB synchronizes nothing. After a loss of power any of its latest files may be missing, empty or have holes, the one
that makes a version included, and there are no checksums to tell. So `.durable` says of each table which version is
certainly on the disk (`marks`):

    writing(table)   before a write: the table has a mark, of this run of the system
    flush()          everything of the table that is new goes to the disk, and then the mark names its newest version
    check(table)     before the first use: what an earlier run of the system has written after the mark is put aside

Nothing after the mark was acknowledged, so that putting it aside costs only that it is written again. A writer that was
killed while the system ran on has left its files in the system's memory, whole. They stay, and count as written:
`flush` puts them on the disk for the process that found them so, before that one acknowledges them.

`mend` does the same for a table that cannot be read although it was marked, because its disk lost what it had confirmed
or somebody damaged it: its last whole version counts, and the mark says that acknowledged rows may be missing, until
somebody has compared the table with its source.

What is put aside stays beside the table, renamed: a version's file as `….damaged`, a table as `.damaged/…`.
"""

import errno
import fcntl
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vectorize_pipelines.core.durable_files import running_system, sync, sync_all, sync_file_system, sync_folders
from vectorize_pipelines.stores.lancedb.commits import commit_of, manifest_file, table_folder, versions
from vectorize_pipelines.stores.lancedb.marks import FOLDER, Mark, Marks
from vectorize_pipelines.stores.lancedb.wholeness import is_whole

logger = logging.getLogger(__name__)

#: Appended to the name of a version's file, so that LanceDB does not find it.
DAMAGED = ".damaged"
#: What is said where another process has to flush first.
NOT_YET_DURABLE = "not on the disk yet"
#: What is said where rows that a run has found may not outlive a loss of power, and this process cannot help it.
UNCERTAIN = "are not certain to be on the disk"
_DROPPED = ".dropped"
#: As many as a commit has new files, and folders with new names.
_SYNCED_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class _Listed:
    """The files of a table: its newest version, and every file and folder that it may need."""

    version: int
    commit: str
    paths: frozenset[str]


class Durability:
    """The state on the disk of the tables of a directory. Safe for use by several threads and processes.

    Every method may raise `OSError`.
    """

    def __init__(self, directory: Path, locked: Callable[[str], AbstractContextManager[None]]) -> None:
        """Take `locked`, which holds a table's lock and so keeps every writer away."""
        self._directory = directory
        self._locked = locked
        self._marks = Marks(directory)
        self._changing = threading.Lock()
        self._checked: set[str] = set()
        #: Tables that another machine is to flush before this object may write to them.
        self._waiting: set[str] = set()
        #: Table -> number of its writes that are not durable, and the descriptor of the lock that says so.
        self._written: dict[str, tuple[int, int]] = {}
        #: Table -> the paths that this object knows to be on the disk.
        self._durable: dict[str, frozenset[str]] = {}
        self._executor = ThreadPoolExecutor(_SYNCED_AT_ONCE, thread_name_prefix="lancedb-sync")

    # ---- writing

    def creating(self, table: str) -> None:
        """Note that a table is about to be made: without its mark, a half-made one would be taken for damaged."""
        self._marks.update(table, lambda _: Mark(0, "", running_system()))
        self._begin(table)

    def writing(self, table: str) -> None:
        """Note that a table is about to be written to. Called with the table's lock held."""
        with self._changing:
            count, descriptor = self._written.get(table, (0, -1))
            if count:
                self._written[table] = count + 1, descriptor
                return
        mark = self._marks.read(table)
        if mark is None:
            self._durable[table] = self._synchronized(table)
            self._mark(table, self._listed(table))
        elif not _is_running(mark.system):
            self._take_over(table, mark)
        self._begin(table)

    def flush(self, tables: Collection[str] | None = None, relied_on: Sequence[str] = ()) -> None:
        """Return once what this object has written, to these tables or to all, is on the disk.

        So is everything in the tables `relied_on`, by whichever process; they are marked last and in their order. What
        other processes have written to the same tables is, too. After a failure nothing that was written since the last
        success counts: the system may have dropped it, and says so only once.
        """
        for table in relied_on:
            self._take_in_hand(table)
        with self._changing:
            due = {name: count for name, (count, _) in self._written.items() if tables is None or name in tables}
            due |= {name: due.pop(name, self._written[name][0]) for name in relied_on if name in self._written}
        if not due:
            return
        try:
            listed = {table: self._listed(table) for table in due}
            self._synchronize(listed)
            for table, what in listed.items():
                self._mark(table, what)
        except OSError as error:
            for table in due:
                self._distrust(table)
            # Never to be waited for: other batches may have been made of what is put aside now.
            raise OSError(f"{error}; rows of the tables {', '.join(due)} {UNCERTAIN}") from error
        for table, count in due.items():
            self._end(table, count)

    def flush_written_elsewhere(self, table: str) -> None:
        """Flush a table that another object writes to, which holds its lock."""
        self._begin(table)
        self.flush((table,))

    def dropped(self, table: str) -> None:
        """Remove a table, whatever state it is in, in one step. Called with its lock held."""
        self._end(table)
        self._durable.pop(table, None)
        self._put_aside(table, _DROPPED)
        self._marks.remove(table)
        # What a process that died here before has left goes, too.
        shutil.rmtree(self._directory / _DROPPED, ignore_errors=True)

    def close(self) -> None:
        """Make everything durable that is not yet; a second call does nothing."""
        try:
            self.flush()
        finally:
            self._executor.shutdown()

    def _begin(self, table: str) -> None:
        descriptor = os.open(self._unsynchronized(table), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # let go of when the process dies
        with self._changing:
            count, held = self._written.get(table, (0, -1))
            self._written[table] = count + 1, descriptor if held == -1 else held
        if held != -1:
            os.close(descriptor)

    def _take_in_hand(self, table: str) -> None:
        """Have `flush` deal with a table whose newest version is not on the disk, as if this object had written it."""
        with self._changing:
            if table in self._written:
                return
        mark = self._marks.read(table)
        newest = next(iter(versions(self._directory, table)), 0)
        if mark is None:
            if self._folder(table).exists():
                self._begin(table)
        elif (mark.version, mark.commit) != (newest, self._commit(table, newest)):
            if mark.system != running_system():
                self._checked.discard(table)
                raise _uncertain(table)
            self._begin(table)

    def _take_over(self, table: str, mark: Mark) -> None:
        """Mark that this run of the system writes what comes after the mark from now on."""
        if self._is_marked(table, mark, found := versions(self._directory, table)) and found[:1] > [mark.version]:
            self._checked.discard(table)
            if mark.system == "":
                raise _uncertain(table)
            self._waiting.add(table)
            raise OSError(errno.EBUSY, f"{NOT_YET_DURABLE}: another process has written to the table {table}")
        self._marks.update(table, lambda now: replace(now or mark, system=running_system()))

    def _end(self, table: str, count: int | None = None) -> None:
        """Note that nothing of a table is left to make durable, unless there were further writes than so many."""
        with self._changing:
            if table not in self._written or count not in (None, self._written[table][0]):
                return
            os.close(self._written.pop(table)[1])

    def _distrust(self, table: str) -> None:
        self._end(table)
        self._checked.discard(table)
        self._durable.pop(table, None)
        with suppress(OSError):  # the failure that is being raised says enough
            self._marks.update(table, lambda mark: replace(mark or Mark(0, "", ""), system=""))

    def _listed(self, table: str) -> _Listed:
        # The version first: whatever it needs was there before it.
        newest = next(iter(versions(self._directory, table)), 0)
        return _Listed(newest, self._commit(table, newest), frozenset(_paths(str(self._folder(table)))))

    def _synchronize(self, listed: dict[str, _Listed]) -> None:
        known = {table: self._durable.get(table) for table in listed}
        if None in known.values():
            # Also what processes wrote that were killed before they could.
            self._synchronize_everything([table for table, paths in known.items() if paths is None], listed)
        new = {path for table, what in listed.items() for path in what.paths - (known[table] or what.paths)}
        sync_all(new | {path.rpartition("/")[0] for path in new}, self._executor)
        self._durable |= {table: what.paths for table, what in listed.items()}

    def _synchronize_everything(self, tables: Sequence[str], listed: dict[str, _Listed]) -> None:
        sync_folders(self._directory)
        if not sync_file_system(self._directory):
            sync_all([path for table in tables for path in listed[table].paths], self._executor)

    def _synchronized(self, table: str) -> frozenset[str]:
        listed = self._listed(table)
        self._synchronize_everything([table], {table: listed})
        return listed.paths

    def _mark(self, table: str, listed: _Listed) -> None:
        def later(mark: Mark | None) -> Mark:
            if mark is not None and mark.version >= listed.version and self._is_there(table, mark):
                return mark  # another process came first
            if mark is not None and mark.system != running_system():
                raise _uncertain(table)
            return Mark(listed.version, listed.commit, running_system(), mark is not None and mark.doubtful)

        if listed.version:
            self._marks.update(table, later)

    # ---- reading what an earlier run of the system, or a failing disk, has left

    def check(self, table: str) -> bool:
        """Put aside what is not certain of a table before it is used, without its lock; return whether anything was."""
        if table in self._checked:
            return False
        mark = self._marks.read(table)
        newest = next(iter(versions(self._directory, table)), 0)
        changed = False
        if mark is not None and not _is_running(mark.system):
            certain = (mark.version, mark.commit) == (newest, self._commit(table, newest))
            if not certain or (mark.version == 0 and self._folder(table).exists()):
                changed = self.mend(table)
        self._checked.add(table)
        if changed and table in self._waiting:  # for a machine that died: its rows may have been found right
            self._waiting.discard(table)
            raise _uncertain(table)
        return changed

    def mend(self, table: str) -> bool:
        """Fall back to the last whole version; return whether that was another one than the newest.

        Called without the table's lock. Does nothing where no version is whole.
        """
        with self._locked(table):
            mark = self._marks.read(table)
            found = versions(self._directory, table)
            with self._certain(table, mark, found) as certain:
                if certain == 0 and mark is not None:
                    return self._undo_creation(table)
                candidates = (each for each in found if certain is None or each <= certain)
                whole = next((each for each in candidates if is_whole(self._folder(table), each)), None)
                if whole is None or whole == found[0]:
                    return False
                self._fall_back(table, mark, [each for each in found if each > whole], whole)
        return True

    def is_doubtful(self, table: str) -> bool:
        """Return whether acknowledged rows of a table may have been lost."""
        mark = self._marks.read(table)
        return mark is not None and mark.doubtful

    def trust(self, table: str) -> None:
        """Take a table's rows for certain. Called once it is certain that it will be compared with its source."""
        mark = self._marks.read(table)
        if mark is not None and mark.doubtful:
            self._marks.update(table, lambda now: replace(now or mark, doubtful=False))

    def put_table_aside(self, table: str) -> Path:
        """Put a table that cannot be read out of the way; return where it lies now. Called with its lock held."""
        self._end(table)
        self._durable.pop(table, None)
        place = self._put_aside(table, DAMAGED)
        self._marks.remove(table)
        return place

    @contextmanager
    def _certain(self, table: str, mark: Mark | None, found: Sequence[int]) -> Iterator[int | None]:
        """Find the newest version that may be relied on, where that is not the newest; None: any may be looked at."""
        if mark is None or _is_running(mark.system) or not self._is_marked(table, mark, found):
            yield None
            return
        # A machine that shares the folder, and so has its own run of its system, may be about to flush.
        descriptor = os.open(self._unsynchronized(table), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield mark.version
        finally:
            os.close(descriptor)

    def _is_marked(self, table: str, mark: Mark, found: Sequence[int]) -> bool:
        """Return whether the mark is of this table, and not of one that lay here before."""
        if mark.version == 0:
            return True
        return mark.version in found and self._is_there(table, mark)

    def _is_there(self, table: str, mark: Mark) -> bool:
        return self._commit(table, mark.version) == mark.commit

    def _undo_creation(self, table: str) -> bool:
        if not self._folder(table).exists():
            return False
        place = self.put_table_aside(table)
        logger.warning(
            "the power went while the table %s was made, of which nothing was acknowledged; it is put aside as %s",
            table,
            place,
        )
        return True

    def _fall_back(self, table: str, mark: Mark | None, aside: Sequence[int], whole: int) -> None:
        for version in aside:
            file = manifest_file(self._directory, table, version)
            file.rename(file.with_name(file.name + DAMAGED))
        sync(self._folder(table) / "_versions")
        lost = mark is None or any(version <= mark.version for version in aside)
        doubtful = lost or (mark is not None and mark.doubtful)
        self._marks.update(table, lambda _: Mark(whole, self._commit(table, whole), running_system(), doubtful))
        self._durable.pop(table, None)
        shown = ", ".join(map(str, sorted(aside)))
        if lost:
            logger.error(
                "the table %s is damaged: version %s cannot be read and is put aside; version %d counts, and rows that "
                "were acknowledged since may be missing. The next run from files compares every file with what is "
                "there; requests come back by a replay of their days",
                table,
                shown,
                whole,
            )
        else:
            logger.warning(
                "the power went before version %s of the table %s was safely on the disk; it is put aside, version %d "
                "counts. Nothing of it was acknowledged: the next run writes it again",
                shown,
                table,
                whole,
            )

    def _put_aside(self, table: str, folder: str) -> Path:
        place = self._directory / folder / f"{table}-{uuid.uuid4().hex[:8]}"
        place.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            self._folder(table).rename(place)
        sync(self._directory)
        sync(place.parent)
        return place

    def _folder(self, table: str) -> Path:
        return table_folder(self._directory, table)

    def _commit(self, table: str, version: int) -> str:
        return (commit_of(self._directory, table, version) or b"").hex()

    def _unsynchronized(self, table: str) -> Path:
        return self._directory / FOLDER / f"{table}.unsynchronized"


def make_durable(directory: Path, table: str) -> None:
    """Put a table on the disk. Called by the process that maintains it, for the one that holds its lock."""
    durability = Durability(directory, lambda _: nullcontext())
    durability.flush_written_elsewhere(table)
    durability.close()


def _uncertain(table: str) -> OSError:
    return OSError(f"rows of the table {table} {UNCERTAIN}: the one that wrote them has failed, or is elsewhere")


def _is_running(system: str) -> bool:
    return system != "" and system == running_system()


def _paths(folder: str) -> Iterator[str]:
    """Yield a folder and everything below it, but for files that are being written."""
    yield folder
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".tmp") or "#" in entry.name:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from _paths(entry.path)
                else:
                    yield entry.path
    except FileNotFoundError:
        return
