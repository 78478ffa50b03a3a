"""The callers of one process that wait for a key, in order; the first of them stands in the queue of all processes."""

import asyncio
import itertools
import logging
import secrets
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from vectorize_pipelines.errors import KeysError, NoKeyAvailableError
from vectorize_pipelines.providers.key_set import KeySet, lease_of
from vectorize_pipelines.providers.keys import APIKeyInfo
from vectorize_pipelines.providers.limits import Grant, KeyLimits, Lease, Outcome, Request, SaltChangedError, Wait
from vectorize_pipelines.providers.shared_keys import SharedKeys
from vectorize_pipelines.providers.state_clock import StateClock

logger = logging.getLogger(__name__)

#: Between two attempts while the state is away.
AGAIN_SECONDS = 0.25


#: A call that begins later than this after its key was lent is counted anew; less than the least margin of `Windows`.
LATE_SECONDS = 0.01
#: A process that is kept waiting for longer begins its call nevertheless.
_LATEST_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class _Loan:
    """A key that was lent for a call that begins at `starts`, by the clock of the state."""

    key: APIKeyInfo
    limits: KeyLimits
    starts: float


@dataclass
class _Line:
    """The callers that want the same keys. What the first of them was told last is for all of them.

    `exclude`: the names of keys that they do not want. A line is there as long as it has `callers`. All of those that
    are `waiting` stand behind its one place in the queue of all processes.
    """

    provider: str | None
    model: str | None
    exclude: frozenset[str]
    ticket: str
    callers: int = 0
    waiting: int = 0
    in_queue: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    told: Wait | None = None
    failure: KeysError | None = None


class KeyQueue:
    """Gets keys for callers. It belongs to one event loop."""

    def __init__(self, keys: SharedKeys, lease_seconds: float):
        self._keys = keys
        self._lease_seconds = lease_seconds
        self._owner = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._lines: dict[tuple[str | None, str | None, frozenset[str]], _Line] = {}
        self._clock = StateClock()
        self._released = asyncio.Event()
        self._background: set[asyncio.Task[Any]] = set()

    async def get(
        self,
        provider: str | None,
        model: str | None,
        tokens: int,
        deadline_seconds: float | None,
        exclude: frozenset[str] = frozenset(),
    ) -> APIKeyInfo:
        """Return a key, in the order of the callers. Raises `NoKeyAvailableError` and `KeysError`."""
        line = self._line(provider, model, exclude)
        line.callers += 1
        try:
            async with asyncio.timeout(deadline_seconds):
                while True:
                    loan = await self._wait_in_line(line, tokens)
                    if await self._begin(loan):
                        return loan.key
        except TimeoutError:
            if line.failure is not None:
                raise line.failure from None
            raise _too_late(line, deadline_seconds) from None
        finally:
            line.callers -= 1
            if not line.callers:
                del self._lines[(provider, model, exclude)]

    def wake(self) -> None:
        """Let a caller ask at once that waits for the end of a call: one has ended."""
        self._released.set()
        self._released = asyncio.Event()

    async def close(self) -> None:
        """Wait until what callers left behind is given back."""
        if self._background:
            await asyncio.wait(self._background)

    def _line(self, provider: str | None, model: str | None, exclude: frozenset[str]) -> _Line:
        line = self._lines.get((provider, model, exclude))
        if line is None:
            line = self._lines[(provider, model, exclude)] = _Line(provider, model, exclude, self._new_id())
        return line

    def _new_id(self) -> str:
        return f"{self._owner}-{next(self._numbers)}"

    async def _wait_in_line(self, line: _Line, tokens: int) -> _Loan:
        """Return a key that is lent, after those who came before. The last one to go gives up the place of the line."""
        line.waiting += 1
        try:
            async with line.turn:
                return await self._ask_until_lent(line, tokens)
        finally:
            line.waiting -= 1
            if line.in_queue and not line.waiting:
                line.in_queue = False
                self._in_background(self._keys.use.leave(line.ticket))
                line.ticket = self._new_id()  # for whoever comes before that place is given up

    async def _ask_until_lent(self, line: _Line, tokens: int) -> _Loan:
        """Return a key that is lent. While the state is away, go on asking."""
        lease = self._new_id()
        while True:
            released = self._released
            try:
                answer = await self._ask(line, tokens, lease)
            except NoKeyAvailableError:
                raise
            except KeysError as error:
                line.failure = error
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            line.failure = None
            line.in_queue = isinstance(answer, Wait)
            if not isinstance(answer, Wait):
                return answer
            line.told = answer
            await _pause(answer, released)

    async def _ask(self, line: _Line, tokens: int, lease: str) -> _Loan | Wait:
        """Ask once. Raises `NoKeyAvailableError` where waiting is of no use, and `KeysError`."""

        async def ask(keys: KeySet) -> _Loan | Wait:
            place = self._keys.source.place
            wanted = keys.wanted(line.provider, line.model, line.exclude, tokens, place)
            request = Request(wanted.limits, keys.strategy, tokens, lease, self._lease_seconds, line.ticket)
            answer = await self._request(request)
            if isinstance(answer, Grant):
                lent = keys.lent(answer.key_id, lease, tokens)
                return _Loan(lent, keys.limits_of(answer.key_id), answer.starts)
            if answer.next_available is None:
                raise NoKeyAvailableError(keys.all_disabled(wanted, place))
            return answer

        return await self._keys.do(ask)

    async def _request(self, request: Request) -> Grant | Wait:
        """Return the answer to a request. A key that is lent after the caller has gone is given back."""
        asked = _now()
        asking = asyncio.ensure_future(self._keys.use.acquire(request))
        try:
            answer = await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._in_background(self._give_back(asking, request))
            raise
        if isinstance(answer, Grant):
            self._clock.observe(asked, answer.now, _now())
        return answer

    async def _give_back(self, asking: Awaitable[Grant | Wait], request: Request) -> None:
        answer = await asking
        if isinstance(answer, Grant):
            lease = Lease(request.lease, answer.key_id, request.tokens)
            await self._keys.use.release(lease, Outcome("", unused=True))

    async def _begin(self, loan: _Loan) -> bool:
        """Wait until the call may begin; where that is late, until it counts from no earlier.

        A busy machine may let a process wait for longer than the margins of `Windows` allow for. Return false where the
        loan has come to nothing, since its windows have no room for a call that late, or since the state is away.
        """
        lease = lease_of(loan.key)
        try:
            earliest, latest = self._clock.here(loan.starts)
            if latest > _now():
                await asyncio.sleep(latest - _now())
            within = LATE_SECONDS
            while loan.limits.by_time and _now() - earliest > LATE_SECONDS and within < _LATEST_SECONDS:
                within *= 2  # as long as it may take to say so, and to be heard
                asked = _now()
                said = await self._keys.use.begin(lease, loan.limits, within)
                if said is None:
                    return False
                self._clock.observe(asked, said, _now())
                earliest, _ = self._clock.here(said + within)
        except asyncio.CancelledError:
            self._in_background(self._keys.use.release(lease, Outcome(loan.key.provider, unused=True)))
            raise
        except SaltChangedError:  # the state was begun again, and knows of no call
            return False
        except KeysError:
            self._in_background(self._keys.use.release(lease, Outcome(loan.key.provider, unused=True)))
            return False
        return True

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("a place or a loan of an API key was not given back, and ends by itself: %s", error)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _pause(wait: Wait, released: asyncio.Event) -> None:
    """Wait as long as the state says, or until this process has given back a key where that may help."""
    if not wait.for_release:
        await asyncio.sleep(wait.seconds)
        return
    try:
        async with asyncio.timeout(wait.seconds):
            await released.wait()
    except TimeoutError:
        return


def _too_late(line: _Line, seconds: float | None) -> NoKeyAvailableError:
    what = "".join(
        f" {word} {name}" for word, name in (("of the provider", line.provider), ("for the model", line.model)) if name
    )
    after = None if line.told is None else line.told.next_available
    if line.told is not None and line.told.for_release:
        when = "; the next is free when a call ends"
    else:
        when = "" if after is None else f"; the next is free in {after:.1f} s, and others may wait for it too"
    return NoKeyAvailableError(f"no API key{what} was free within {seconds or 0:g} s{when}", after)
