"""The states of requests. The words stand in result events, in the ledger and on the command line."""

from enum import StrEnum


class RequestState(StrEnum):
    """The state of a request. `is_final`: it stays so, unless the request is sent again."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in FINAL_STATES


FINAL_STATES = frozenset({RequestState.COMPLETED, RequestState.FAILED, RequestState.CANCELLED})
