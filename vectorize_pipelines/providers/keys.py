"""What callers know of API keys: a key that was lent, what became of a call with it, and the states of a key."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from pydantic import SecretStr


class KeyState(StrEnum):
    """What a key can be used for now."""

    AVAILABLE = "available"
    #: As many calls as its limits allow have it.
    IN_USE = "in_use"
    #: The provider answered 429, and the pause that it asked for is not over.
    COOLING = "cooling"
    #: The provider refused it (401, 403), or somebody disabled it.
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class APIKeyInfo:
    """A key that was lent for one call, until it is released. The key itself is in no representation of it.

    `models`: those that the key may be used for, empty: all. A limit that is None does not exist. `lease`: the id of
    this loan.
    """

    name: str
    api_key: SecretStr
    provider: str = "default"
    models: tuple[str, ...] = ()
    priority: int = 0
    qps_limit: int | None = None
    rpm_limit: int | None = None
    tpm_limit: int | None = None
    max_concurrency: int | None = None
    lease: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class RateLimited:
    """The provider answered 429. `retry_after_seconds`: the pause that it asked for; None: it named none."""

    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class KeyRefused:
    """The provider answered 401 or 403: the key is not valid, or not allowed. `message` is shown, without the key."""

    status: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class ProviderFailed:
    """The provider failed (5xx, no answer in time, no connection), which says nothing about the key."""

    reason: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The caller gave up before there was an answer, which says nothing about the key or the provider."""


KeyFailure: TypeAlias = RateLimited | KeyRefused | ProviderFailed | Cancelled
