"""Calls to providers of remote models: a key of the pool, repeats, a deadline for the whole, and a record of each."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from vectorize_pipelines.errors import (
    ContentRefusedError,
    KeysError,
    ProviderUnavailableError,
    SettingsError,
    VectorizeError,
)
from vectorize_pipelines.providers.concurrency import AdaptiveLimit
from vectorize_pipelines.providers.connections import Connections
from vectorize_pipelines.providers.failures import failure_of
from vectorize_pipelines.providers.key_pool import APIKeyInfo, APIKeyPool, KeyFailure, ProviderFailed, RateLimited
from vectorize_pipelines.providers.models import RemoteModel
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.provider_calls import CallLog, CallRecord

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from tenacity import RetryCallState

__all__ = ["Call", "CallLog", "CallRecord", "ProviderClient", "Usage"]

#: Pauses after failures of the provider are drawn from 0 to these seconds, the bound doubled each time.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
_OUTCOMES: dict[type[VectorizeError], str] = {
    ContentRefusedError: "refused",
    KeysError: "no_key",
    ProviderUnavailableError: "unavailable",
    SettingsError: "misconfigured",
}

Response = TypeVar("Response")


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of a provider, as far as keys and records have to know.

    tokens            what it may take, estimated; corrected once the provider has counted
    deadline_seconds  for the whole, with all repeats and all waiting
    """

    model: RemoteModel
    tokens: int
    deadline_seconds: float
    tenant: str | None = None
    camera: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one response, as the provider counted them."""

    prompt_tokens: int
    completion_tokens: int = 0


@dataclass(slots=True)
class _Progress:
    """What has been tried for one call."""

    began: float = field(default_factory=time.monotonic)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    attempts: Counter[str] = field(default_factory=Counter)
    key_name: str = ""
    failure: KeyFailure | None = None
    usage: Usage = Usage(0)

    def left(self, deadline_seconds: float) -> float:
        """Return the seconds until the deadline."""
        return max(0.0, self.began + deadline_seconds - time.monotonic())


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

    async def call(
        self, call: Call, send: "Callable[[AsyncOpenAI], Awaitable[tuple[Response, Usage]]]"
    ) -> tuple[Response, CallRecord]:
        """Return the response to a call, which `send` makes with the client that it is given.

        On 429 another key is tried, as soon as there is one; after a failure of the provider the call pauses for a
        random time that grows. No key is tried more often than the pool says.

        Raises `ProviderUnavailableError` and `KeysError`, which may pass, `ContentRefusedError` where the
        provider refuses this content, and `SettingsError` where model or address are wrong.
        """
        progress = _Progress()
        try:
            response = await self._until_answered(call, send, progress)
        except _AttemptFailedError as error:
            unavailable = _unavailable(call, progress, error.failure)
            self.note(self._record(call, progress, "unavailable"))
            raise unavailable from None
        except VectorizeError as error:
            outcome = next((name for kind, name in _OUTCOMES.items() if isinstance(error, kind)), "failed")
            self.note(self._record(call, progress, outcome))
            raise
        return response, self._record(call, progress, "completed")

    def note(self, record: CallRecord) -> None:
        """Have a record written, where there is a log. A call that succeeded is noted by whoever reads its response."""
        if self._log is not None:
            self._log.note(record)

    async def close(self) -> None:
        """Close the connections; a second call does nothing."""
        await self._connections.close()

    async def _until_answered(
        self,
        call: Call,
        send: "Callable[[AsyncOpenAI], Awaitable[tuple[Response, Usage]]]",
        progress: _Progress,
    ) -> Response:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

        jitter = wait_random_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS)

        def pause(state: "RetryCallState") -> float:
            return jitter(state) if isinstance(progress.failure, ProviderFailed) else 0.0

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_AttemptFailedError),
            wait=pause,
            stop=stop_before_delay(call.deadline_seconds),
            sleep=asyncio.sleep,
            reraise=True,
        )
        response: Response = await retrying(self._attempt, call, send, progress)
        return response

    async def _attempt(
        self,
        call: Call,
        send: "Callable[[AsyncOpenAI], Awaitable[tuple[Response, Usage]]]",
        progress: _Progress,
    ) -> Response:
        model = call.model
        limit = self._limits.setdefault(model.provider, AdaptiveLimit(self.settings.max_concurrency))
        try:
            async with limit.slot(progress.left(call.deadline_seconds)) as began:
                key = await self.pool.acquire_key(
                    provider=model.provider,
                    model=model.model,
                    tokens=call.tokens,
                    deadline_seconds=progress.left(call.deadline_seconds),
                )
                if progress.failure is not None and progress.attempts[key.name] >= self.pool.max_retry_per_key:
                    await self.pool.release_key(key, tokens=0)
                    raise _unavailable(call, progress, progress.failure)
                progress.key_name = key.name
                progress.attempts[key.name] += 1
                seconds = min(self.settings.call_seconds, progress.left(call.deadline_seconds))
                outcome = await self._with_key(key, model, send, seconds)
                if isinstance(outcome, ProviderFailed):
                    limit.failed(began)
                else:
                    limit.succeeded()
        except TimeoutError:
            outcome = ProviderFailed("as many calls as it bears are under way")
        if isinstance(outcome, VectorizeError):
            raise outcome
        if not isinstance(outcome, tuple):
            progress.failure = outcome
            raise _AttemptFailedError(outcome)
        response, progress.usage = outcome
        return response

    async def _with_key(
        self,
        key: APIKeyInfo,
        model: RemoteModel,
        send: "Callable[[AsyncOpenAI], Awaitable[tuple[Response, Usage]]]",
        seconds: float,
    ) -> tuple[Response, Usage] | KeyFailure | VectorizeError:
        """Return what became of one request; the key is given back, also where the call is cancelled meanwhile."""
        failure: KeyFailure | None = None
        tokens: int | None = None
        answered = False
        try:
            async with asyncio.timeout(seconds):
                response, usage = await send(self._connections.client(model.provider, key))
            answered, tokens = True, usage.prompt_tokens + usage.completion_tokens
        except Exception as error:  # noqa: BLE001 (what it does not know, `failure_of` raises)
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

    def _record(self, call: Call, progress: _Progress, outcome: str) -> CallRecord:
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


def _unavailable(call: Call, progress: _Progress, failure: KeyFailure) -> ProviderUnavailableError:
    match failure:
        case RateLimited():
            reason = "its keys are rate limited (HTTP 429)"
        case ProviderFailed():
            reason = failure.reason
        case _:
            reason = f"it refuses the key {progress.key_name} (HTTP {failure.status})"
    seconds = time.monotonic() - progress.began
    return ProviderUnavailableError(
        f"the provider {call.model.provider} did not answer a request for {call.model.model} in {seconds:.1f} s and "
        f"{progress.attempts.total()} attempts: {reason}",
        rate_limited=isinstance(failure, RateLimited),
    )
