"""A lock that is lost after a while, for tests of stores that look before each request whether they may still write."""

import itertools

from vectorize_pipelines.state.held_locks import ExclusiveLock, LockLostError


class LockLostLater(ExclusiveLock):
    """A lock that can be checked so often before it is lost."""

    def __init__(self, checks: int):
        self._checks = itertools.count(checks, -1)

    def check(self) -> None:
        if next(self._checks) <= 0:
            raise LockLostError("the run was taken over")
