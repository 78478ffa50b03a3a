"""Estimates of how long a new request takes: what waits before it, at the speed of those that were done last.

Called by the routes that take requests in, thousands of times a second: they get what was last found out, and nobody
waits for the database to find it out again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from math import inf

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.gateway.problems import Problem
from vectorize_pipelines.messaging.messages import TASK_TYPE_OF, TaskType

logger = logging.getLogger(__name__)

#: After so long, whoever asks has it found out again.
FRESH_SECONDS = 5.0
#: Of these there are estimates: requests for one thing, and batches of such.
_KINDS = [(modality, task_type) for modality, single in TASK_TYPE_OF.items() for task_type in (single, TaskType.BATCH)]

Kind = tuple[Modality, TaskType]


class Estimates:
    """The estimates of one installation. Every method is called on one event loop.

    find  returns the seconds until a new request of a kind is done, or None where no speed is known; may raise
          `LedgerError` and `Problem`
    """

    def __init__(self, find: Callable[[Modality, TaskType], Awaitable[float | None]]):
        self._find = find
        self._loop = asyncio.get_running_loop()
        self._found: dict[Kind, float | None] = {}
        self._found_at = -inf
        self._finding: asyncio.Task[None] | None = None
        self._find_if_due()

    def seconds(self, modality: Modality, task_type: TaskType) -> float | None:
        """Return the seconds until a request that is submitted now is done; None where they are not known."""
        self._find_if_due()
        return self._found.get((modality, task_type))

    async def close(self) -> None:
        """Let go of what is being found out."""
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.wait([self._finding])

    def _find_if_due(self) -> None:
        due = self._loop.time() - self._found_at >= FRESH_SECONDS
        if due and (self._finding is None or self._finding.done()):
            self._finding = self._loop.create_task(self._find_all())

    async def _find_all(self) -> None:
        try:
            self._found = {kind: await self._find(*kind) for kind in _KINDS}
        except (LedgerError, Problem) as error:
            logger.warning("how long requests take is not known: %s", error)
        self._found_at = self._loop.time()
