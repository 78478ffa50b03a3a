"""What calls to providers took: one row a call, for figures by tenant, camera, model and key."""

from dataclasses import dataclass
from datetime import datetime
from typing import Self

from vectorize_pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call to a provider, with its repeats.

    at         when it began
    key_name   the name of the key that it succeeded with, or was last tried with; empty where there was none
    cost       in the currency of the price table; None where the model has no price
    outcome    completed, cached, invalid_answer, refused, unavailable, no_key
    attempts   requests that were sent
    cached     whether the answer came from the cache, and took no tokens
    """

    at: datetime
    model: str
    key_name: str
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    latency_ms: float
    outcome: str
    attempts: int
    cached: bool = False
    tenant: str | None = None
    camera: str | None = None


class CallLog:
    """The table of calls, written by a thread of its own, so that no call waits for it."""

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the log of an installation. Raises `SettingsError` and `LedgerError`."""
        raise NotImplementedError

    def note(self, record: CallRecord) -> None:
        """Take a record, to be written within a second."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is left. Raises `LedgerError` where it cannot be written."""
        raise NotImplementedError
