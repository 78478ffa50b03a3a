"""Files of an installation that fail: which failure it is, in words, and what is put aside and made again.

A damaged file, a full disk and a read-only one show themselves as errors of the operating system, of SQLite, or of
SQLAlchemy around these. `explain` is the one place that turns them into what the user reads.
"""

import errno
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

from filelock import FileLock, Timeout

from vectorize_pipelines.errors import DamagedStateError, SettingsError, StateError, VectorizeError

logger = logging.getLogger(__name__)

Trouble: TypeAlias = Literal["full", "read-only", "denied", "blocked", "disk", "damaged", "locked", "unopened"]

#: How long a process waits for another one that makes the same file.
MAKING_SECONDS = 120
#: What SQLite keeps beside a database, in the order in which it is moved.
COMPANIONS = ("-wal", "-shm", "-journal")
#: With less than this, a file system counts as full: SQLite tells some failures by a general error only.
_NEXT_TO_NOTHING = 2**20
#: How often SQLite asks whether a check is to end, in instructions of its virtual machine.
_INSTRUCTIONS = 100_000

_BY_ERRNO: dict[int, Trouble] = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EROFS: "read-only",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EIO: "disk",
}
#: Something lies where a folder or file of the home belongs; elsewhere these say nothing about the disk.
_BLOCKED = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_BY_SQLITE_CODE: dict[int, Trouble] = {
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_PERM: "denied",
    sqlite3.SQLITE_IOERR: "disk",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_CANTOPEN: "unopened",
}


class OtherFormatError(sqlite3.DatabaseError):
    """A file was written by another version of this project, in a format that this one does not read."""


def explain(error: BaseException, place: Path, damaged: str = "") -> VectorizeError | None:
    """Return what to raise for a failure of the disk or of a file; None for any other error, which is a defect.

    place    the file or folder that the message names, where the error itself names none
    damaged  what to do where it is damaged
    """
    found = _trouble(error, place)
    if found is None:
        return None
    trouble, reason, place = found
    match trouble:
        case "full":
            return StateError(
                f"{place}: no space is left on its disk ({reason}); free some, or set VECTORIZE_HOME to a larger disk"
            )
        case "read-only" | "denied":
            return SettingsError(
                f"{place} cannot be written ({reason}); make it writable for this user, or set VECTORIZE_HOME to a "
                "folder that is"
            )
        case "blocked":
            return SettingsError(f"{place} cannot be used ({reason}): something else lies there; move it away")
        case "disk":
            return StateError(f"{place}: the disk failed ({reason}); the system's log says why")
        case "locked":
            return StateError(f"{place} was held by another process for too long ({reason}); try again when it is done")
        case "unopened":
            return StateError(f"{place} cannot be opened ({reason}); a file that can be read and written belongs there")
        case "damaged":
            return DamagedStateError(f"{place} is damaged ({reason}); {damaged or 'restore it from a backup'}")


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Return whether SQLite says that a file is not, or not whole, what it wrote."""
    return isinstance(error, OtherFormatError) or _of_sqlite(error) == "damaged"


def put_aside(file: Path, label: str = "damaged") -> Path:
    """Move a file and what SQLite keeps beside it to a name of their own, with the time in it; return that name.

    To be called under the lock of the file's maker, since a new one must not meet the old one's companions.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    names = (f"{file.name}.{label}-{stamp}{more}" for more in ("", *(f"-{n}" for n in range(1, 1000))))
    aside = next(path for path in map(file.with_name, names) if not os.path.lexists(path))
    for suffix in ("", *COMPANIONS):
        part = file.with_name(file.name + suffix)
        if os.path.lexists(part):
            part.replace(aside.with_name(aside.name + suffix))
    return aside


def left_aside(folder: Path) -> list[Path]:
    """Return what has been put aside in a folder, without what SQLite kept beside it."""
    return sorted(
        path
        for pattern in ("*.damaged-*", "*.format-*")
        for path in folder.glob(pattern)
        if not path.name.endswith(COMPANIONS)
    )


def open_derived(
    file: Path, connect: Callable[[Path], sqlite3.Connection], cost: str, seconds: float = MAKING_SECONDS
) -> sqlite3.Connection:
    """Open, or make, a SQLite file of what can be made again; a damaged one is put aside first, with a loud word.

    One process at a time opens it, so that two neither make it at once nor put aside what the other has just made.
    `cost` says what it costs to make its content again; `seconds` is how long others are waited for. Raises
    `VectorizeError`.
    """
    with making(file, seconds):
        if not file.exists():
            _put_remains_aside(file)
        try:
            return connect(file)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            _tell_put_aside(file, error, cost)
        return connect(file)


@contextmanager
def making(file: Path, seconds: float = MAKING_SECONDS) -> Iterator[None]:
    """Hold the lock of a file's maker, whose folder is made too. Raises `VectorizeError` where that cannot be."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(file.name + ".lock"), timeout=seconds):
            yield
    except (OSError, sqlite3.Error) as error:
        raise explain(error, file) or StateError(f"{file} cannot be opened: {error}") from error


def discard_damaged(file: Path, error: sqlite3.DatabaseError, cost: str) -> None:
    """Put aside a file that was found damaged while it was in use; the next who opens it makes it again."""
    with making(file):
        if file.exists():
            _tell_put_aside(file, error, cost)


def check_database(file: Path, seconds: float) -> str | None:
    """Return what is wrong with a SQLite file; None where nothing was found within so many seconds."""
    deadline = time.monotonic() + seconds
    # Where nothing can be written, SQLite cannot make what it keeps beside a database.
    mode = "mode=ro" if os.access(file.parent, os.W_OK) else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?{mode}", uri=True, timeout=seconds)) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline, _INSTRUCTIONS)
            (said,) = connection.execute("pragma quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        return None if _code(error) == sqlite3.SQLITE_INTERRUPT else str(error)
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if said == "ok" else " ".join(str(said).split())


def _put_remains_aside(file: Path) -> None:
    """Put aside a log without its database: it would be played into the new one."""
    if any(os.path.lexists(file.with_name(file.name + suffix)) for suffix in COMPANIONS):
        put_aside(file, "damaged")


def _tell_put_aside(file: Path, error: sqlite3.DatabaseError, cost: str) -> None:
    other = isinstance(error, OtherFormatError)
    aside = put_aside(file, "format" if other else "damaged")
    state = f"is not of this version's format ({error})" if other else f"is damaged ({error})"
    logger.warning("%s %s; it is put aside as %s and made again: %s", file, state, aside.name, cost)


def _trouble(error: BaseException, place: Path) -> tuple[Trouble, str, Path] | None:
    """Return the trouble of the first of an error and its causes that says anything about a file, why, and where."""
    for each in _chain(error):
        if isinstance(each, Timeout):
            return "locked", "its lock was not to be had", Path(each.lock_file)
        if isinstance(each, sqlite3.Error):
            trouble = _of_sqlite(each)
            if trouble is not None:
                return _refined(trouble, place), str(each), place
        elif isinstance(each, OSError) and each.errno is not None:
            named = Path(os.fsdecode(each.filename)) if isinstance(each.filename, str | bytes | os.PathLike) else place
            trouble = _BY_ERRNO.get(each.errno)
            if each.errno in _BLOCKED and (named.is_relative_to(place) or place.is_relative_to(named)):
                trouble = "blocked"
            if trouble is not None:
                return trouble, each.strerror or type(each).__name__, named
    return None


def _of_sqlite(error: sqlite3.Error) -> Trouble | None:
    code = _code(error)
    if code is None:  # of Python's module, not of SQLite
        return "damaged" if "Could not decode to UTF-8" in str(error) else None
    return _BY_SQLITE_CODE.get(code & 0xFF)


def _code(error: sqlite3.Error) -> int | None:
    return getattr(error, "sqlite_errorcode", None)


def _refined(trouble: Trouble, place: Path) -> Trouble:
    """Return what lies behind the general errors of SQLite: the file system says."""
    if trouble not in ("disk", "unopened"):
        return trouble
    there = next((path for path in (place, *place.parents) if path.exists()), Path("/"))
    try:
        if os.statvfs(there).f_flag & os.ST_RDONLY:
            return "read-only"
        if shutil.disk_usage(there).free < _NEXT_TO_NOTHING:
            return "full"
    except OSError:
        return trouble
    return trouble


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it wraps, and what it came from."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        # `orig` is SQLAlchemy's name for the error of the driver.
        wrapped = getattr(each, "orig", None)
        left += [wrapped if isinstance(wrapped, BaseException) else None, each.__cause__]
