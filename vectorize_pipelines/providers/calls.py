"""Calls to providers of remote models: a key of the pool, repeats, a deadline for the whole, and a record of each.

wait for a key, in order ──▶ take a place among the calls ──▶ send ──▶ give both back
               ◀── the key is given back unused while the provider bears no more calls
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from vectorize_pipelines.errors import (
    ContentRefusedError,
    KeysError,
    NoKeyAvailableError,
    ProviderUnavailableError,
    SettingsError,
    VectorizeError,
)
from vectorize_pipelines.providers.call_progress import Call, Progress, Usage, unavailable
from vectorize_pipelines.providers.concurrency import AdaptiveLimit
from vectorize_pipelines.providers.connections import Connections
from vectorize_pipelines.providers.failures import failure_of
from vectorize_pipelines.providers.key_pool import (
    APIKeyInfo,
    APIKeyPool,
    Cancelled,
    KeyFailure,
    KeyRefused,
    ProviderFailed,
    RateLimited,
)
from vectorize_pipelines.providers.models import RemoteModel
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.provider_calls import CallLog, CallRecord

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from tenacity import RetryCallState

__all__ = ["Call", "CallLog", "CallRecord", "ProviderClient", "Usage", "counted_tokens"]

#: Pauses after a 429 and after failures of the provider are drawn from 0 to these seconds, the bound doubled each time.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
#: A key that is not free within so long is not free at once.
AT_ONCE_SECONDS = 0.1
_OUTCOMES: dict[type[VectorizeError], str] = {
    ContentRefusedError: "refused",
    KeysError: "no_key",
    ProviderUnavailableError: "unavailable",
    SettingsError: "misconfigured",
}

Response = TypeVar("Response")

#: Sends one request with the client that it is given. Raises what `openai` raises, and `MalformedResponseError`.
Send: TypeAlias = Callable[["AsyncOpenAI"], Awaitable[tuple[Response, Usage]]]


class _AttemptFailedError(Exception):
    """One attempt failed, and another one may succeed."""

    def __init__(self, failure: KeyFailure):
        super().__init__(failure)
        self.failure = failure


class ProviderClient:
    """Calls to providers, one object in each process or run. Used by one event loop."""

    def __init__(self, settings: Settings, pool: APIKeyPool, log: CallLog | None = None):
        """Call with keys of `pool`, which the caller closes, as it closes `log`. Raises `SettingsError`."""
        self.settings = settings.providers
        self.pool = pool
        self._log = log
        self._connections = Connections(self.settings)
        self._limits: dict[str, AdaptiveLimit] = {}

    async def call(self, call: Call, send: "Send[Response]") -> tuple[Response, CallRecord]:
        """Return the response to a call, which `send` makes with the client that it is given.

        After a 429, where another key is free, that is tried. After it, and after a failure of the provider, the call
        pauses for a random time that grows. No key is tried more often than the pool says, and the call is given up
        when all have been, or when its time is over.

        Raises `ProviderUnavailableError` and `KeysError`, which may pass, `ContentRefusedError` where the provider
        refuses this content, and `SettingsError` where model or address are wrong.
        """
        progress = Progress()
        try:
            response = await self._until_answered(call, send, progress)
        except _AttemptFailedError as error:
            self.note(self._record(call, progress, "unavailable"))
            raise unavailable(call, progress, error.failure) from None
        except VectorizeError as error:
            outcome = next((name for kind, name in _OUTCOMES.items() if isinstance(error, kind)), "failed")
            record = self._record(call, progress, outcome)
            self.note(record)
            if isinstance(error, ContentRefusedError):
                error.record = record
            raise
        return response, self._record(call, progress, "completed")

    def note(self, record: CallRecord) -> None:
        """Have a record written, where there is a log. A call that succeeded is noted by whoever reads its response."""
        if self._log is not None:
            self._log.note(record)

    async def close(self) -> None:
        """Close the connections; a second call does nothing."""
        await self._connections.close()

    async def _until_answered(self, call: Call, send: "Send[Response]", progress: Progress) -> Response:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

        jitter = wait_random_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS)

        def pause(state: "RetryCallState") -> float:
            return 0.0 if isinstance(progress.failure, KeyRefused) else jitter(state)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_AttemptFailedError),
            wait=pause,
            stop=stop_before_delay(call.deadline_seconds),
            sleep=asyncio.sleep,
            reraise=True,
        )
        response: Response = await retrying(self._attempt, call, send, progress)
        return response

    async def _attempt(self, call: Call, send: "Send[Response]", progress: Progress) -> Response:
        if progress.failure is not None and not progress.to_wait(call):
            raise unavailable(call, progress, progress.failure)
        limit = self._limits.setdefault(call.model.provider, AdaptiveLimit(self.settings.max_concurrency))
        try:
            key = await self._place_and_key(call, progress, limit)
        except TimeoutError:
            progress.failure = ProviderFailed("as many calls as it bears are under way")
            raise _AttemptFailedError(progress.failure) from None
        try:
            progress.key_name = key.name
            progress.attempts[key.name] += 1
            call.begins()
            began = limit.now()
            outcome = await self._with_key(key, call.model, send, progress.left(call))
            if isinstance(outcome, ProviderFailed):
                limit.failed(began)
            elif not isinstance(outcome, Cancelled):
                limit.succeeded()
        finally:
            limit.leave()
        if isinstance(outcome, VectorizeError):
            raise outcome
        if not isinstance(outcome, tuple):
            progress.failure = outcome
            raise _AttemptFailedError(outcome)
        response, progress.usage = outcome
        return response

    async def _place_and_key(self, call: Call, progress: Progress, limit: AdaptiveLimit) -> APIKeyInfo:
        """Return a key, with a place among the calls, which the caller leaves. Raises `TimeoutError` without a place.

        Who waits for a key has no place meanwhile, which calls with other keys could take; and who waits for a place
        has no key.
        """
        place_first = not limit.has_room
        while True:
            if place_first:
                await limit.wait(progress.to_wait(call))
                with ExitStack() as place, suppress(KeysError):
                    place.callback(limit.leave)
                    key = await self._key(call, progress, min(AT_ONCE_SECONDS, progress.to_wait(call)))
                    place.pop_all()
                    return key
            key = await self._key(call, progress, progress.to_wait(call))
            if limit.enter():
                return key
            await asyncio.shield(self.pool.release_key(key, unused=True))
            place_first = True

    async def _key(self, call: Call, progress: Progress, seconds: float) -> APIKeyInfo:
        """Return a key that this call may still be tried with; not the one that was just refused, if one is free."""
        exhausted = progress.exhausted(self.pool.max_retry_per_key)
        too_late = time.monotonic() + seconds
        if isinstance(progress.failure, RateLimited) and progress.key_name not in exhausted:
            with suppress(KeysError):
                return await self._acquire(
                    call, exhausted | {progress.key_name}, min(AT_ONCE_SECONDS, progress.to_wait(call))
                )
        try:
            return await self._acquire(call, exhausted, max(0.0, too_late - time.monotonic()))
        except NoKeyAvailableError:
            if not exhausted or progress.failure is None or time.monotonic() >= too_late:
                raise
            raise unavailable(call, progress, progress.failure) from None

    async def _acquire(self, call: Call, exclude: Collection[str], seconds: float) -> APIKeyInfo:
        return await self.pool.acquire_key(
            provider=call.model.provider,
            model=call.model.model,
            tokens=call.tokens,
            deadline_seconds=seconds,
            exclude=exclude,
        )

    async def _with_key(
        self, key: APIKeyInfo, model: RemoteModel, send: "Send[Response]", seconds: float
    ) -> tuple[Response, Usage] | KeyFailure | VectorizeError:
        """Return what became of one request, which may take so long; the key is given back, also on cancellation.

        `Cancelled` where the time of the call was over before the provider had that of a request.
        """
        failure: KeyFailure | None = None
        tokens: int | None = None
        answered = False
        try:
            async with asyncio.timeout(min(seconds, self.settings.call_seconds)) as time_left:
                response, usage = await send(self._connections.client(model.provider, key.api_key))
            answered, tokens = True, usage.prompt_tokens + usage.completion_tokens
        except asyncio.CancelledError:
            failure = Cancelled()
            raise
        except Exception as error:  # noqa: BLE001 (what it does not know, `failure_of` raises)
            if time_left.expired() and seconds < self.settings.call_seconds:
                failure = Cancelled()
                return failure
            found = failure_of(error, key, model)
            if isinstance(found, VectorizeError):
                answered = True  # by a provider that accepts the key
                return found
            failure = found
            return failure
        else:
            return response, usage
        finally:
            await asyncio.shield(self.pool.release_key(key, answered, tokens=tokens, failure=failure))

    def _record(self, call: Call, progress: Progress, outcome: str) -> CallRecord:
        usage = progress.usage
        price = self.settings.prices.get(call.model.short_name) or self.settings.prices.get(call.model.full_name)
        return CallRecord(
            at=progress.at,
            model=call.model.short_name,
            key_name=progress.key_name,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cost=None if price is None else price.cost(usage.prompt_tokens, usage.completion_tokens),
            latency_ms=(time.monotonic() - progress.began) * 1000,
            outcome=outcome,
            attempts=progress.attempts.total(),
            tenant=call.tenant,
            camera=call.camera,
        )


def counted_tokens(usage: object, name: str) -> int | None:
    """Return a number of tokens in what a response says of its use, which may be anything; None where there is none."""
    number = usage.get(name) if isinstance(usage, Mapping) else getattr(usage, name, None)
    return number if isinstance(number, int) and number >= 0 else None
