"""What a call to a provider is, and what has been tried for it. Used by `calls`."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from vectorize_pipelines.errors import ProviderUnavailableError
from vectorize_pipelines.providers.keys import Cancelled, KeyFailure, KeyRefused, ProviderFailed, RateLimited
from vectorize_pipelines.providers.models import RemoteModel

#: No request is begun for a call that has less time left, or less than this share of its whole time.
LEAST_SECONDS = 0.2
_LEAST_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of a provider, as far as keys and records have to know.

    tokens            what it may take, estimated; corrected once the provider has counted
    deadline_seconds  for the whole, with all repeats and all waiting
    begins            called when a request of it begins: it has a key, and a place among the calls
    """

    model: RemoteModel
    tokens: int
    deadline_seconds: float
    tenant: str | None = None
    camera: str | None = None
    begins: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one response, as the provider counted them."""

    prompt_tokens: int
    completion_tokens: int = 0


@dataclass(slots=True)
class Progress:
    """What has been tried for one call."""

    began: float = field(default_factory=time.monotonic)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    attempts: Counter[str] = field(default_factory=Counter)
    key_name: str = ""
    failure: KeyFailure | None = None
    usage: Usage = Usage(0)

    def left(self, call: Call) -> float:
        """Return the seconds until the deadline."""
        return max(0.0, self.began + call.deadline_seconds - time.monotonic())

    def to_wait(self, call: Call) -> float:
        """Return the seconds until it is too late to begin a request."""
        return max(0.0, self.left(call) - min(LEAST_SECONDS, call.deadline_seconds * _LEAST_SHARE))

    def exhausted(self, most: int) -> frozenset[str]:
        """Return the names of the keys that have been tried so often."""
        return frozenset(name for name, attempts in self.attempts.items() if attempts >= most)


def unavailable(call: Call, progress: Progress, failure: KeyFailure) -> ProviderUnavailableError:
    """Return the error of a call that is given up; `failure`: of its last attempt."""
    match failure:
        case RateLimited():
            reason = "its keys are rate limited (HTTP 429)"
        case ProviderFailed():
            reason = failure.reason
        case Cancelled():
            reason = "no answer in time"
        case KeyRefused():
            reason = f"it refuses the key {progress.key_name} (HTTP {failure.status})"
    seconds = time.monotonic() - progress.began
    return ProviderUnavailableError(
        f"the provider {call.model.provider} did not answer a request for {call.model.model} in {seconds:.1f} s and "
        f"{progress.attempts.total()} attempts: {reason}",
        rate_limited=isinstance(failure, RateLimited),
    )
