"""`ExclusiveLock`, a lock that is held, to be checked before each write. Made by `locks.exclusive`."""

from contextlib import AbstractContextManager, nullcontext

from vectorize_pipelines.errors import LedgerError


class LockLostError(LedgerError):
    """A lock is not, or not certainly, held any more: whoever held it must write nothing."""


class RunLostError(LockLostError):
    """The lease of the run that this process executes is lost: the run was declared lost, or will be."""


class LockTakenError(LedgerError):
    """Somebody else has held a lock for all the time that it was waited for."""


class ExclusiveLock:
    """A lock that `exclusive` holds."""

    def check(self) -> None:
        """Raise `LockLostError` if the lock, or a lease that the whole process needs, is lost.

        To be called just before what must not be done by two at once.
        """
        check_run()


#: The locks without which this process must write nothing: the lease of its run.
needed_by_process: list[ExclusiveLock] = []


def check_run() -> None:
    """Raise `LockLostError` if the run that this process executes was declared lost.

    To be called just before a write for which no lock is held.
    """
    for lock in tuple(needed_by_process):
        lock.check()


def unlocked() -> AbstractContextManager[ExclusiveLock]:
    """Return a lock for the only user of something."""
    return nullcontext(ExclusiveLock())
