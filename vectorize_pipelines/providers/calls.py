"""Calls to providers of remote models: a key of the pool, repeats, a deadline for the whole, and a record of each."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.provider_calls import CallLog, CallRecord

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from vectorize_pipelines.providers.key_pool import APIKeyPool

__all__ = ["Call", "CallLog", "CallRecord", "ProviderClient"]

Response = TypeVar("Response")


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of a provider, as far as keys and records have to know.

    tokens            what it may take, estimated; corrected once the provider has counted
    deadline_seconds  for the whole, with all repeats
    """

    provider: str
    model: str
    tokens: int
    deadline_seconds: float
    tenant: str | None = None
    camera: str | None = None


class ProviderClient:
    """Calls to providers, one object in each process or run. Used by one event loop."""

    def __init__(self, settings: Settings, pool: "APIKeyPool", log: CallLog | None = None):
        """Call with keys of `pool`, which the caller closes, as it closes `log`."""
        raise NotImplementedError

    async def call(
        self, call: Call, send: "Callable[[AsyncOpenAI], Awaitable[Response]]", usage: Callable[[Response], Any]
    ) -> tuple[Response, CallRecord]:
        """Return the response to one call. Raises `ProviderUnavailableError`, `NoKeyAvailableError`,
        `ContentRefusedError` and `UnknownModelError`.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Close the connections; a second call does nothing."""
        raise NotImplementedError
