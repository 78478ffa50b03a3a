"""What all processes together have used of the limits of each key: in Redis, or in a SQLite file of one machine.

Neither pyrate-limiter nor limits keeps what is promised here. Both count by the clock of the process that asks. They
have one bucket for requests and another for tokens, so that a call which the second refuses has used up the first. They
know no calls side by side, no tokens that are corrected afterwards, and no order of those who wait.
"""

from vectorize_pipelines.providers.limits.base import (
    Grant,
    KeyLimits,
    KeyUse,
    Lease,
    Outcome,
    Pause,
    Request,
    SaltChangedError,
    SharedUse,
    Strategy,
    Wait,
    Windows,
)
from vectorize_pipelines.providers.limits.opening import open_shared_use

__all__ = [
    "Grant",
    "KeyLimits",
    "KeyUse",
    "Lease",
    "Outcome",
    "Pause",
    "Request",
    "SaltChangedError",
    "SharedUse",
    "Strategy",
    "Wait",
    "Windows",
    "open_shared_use",
]
