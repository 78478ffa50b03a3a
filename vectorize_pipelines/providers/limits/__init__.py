"""What all processes together have used of the limits of each key: in Redis, or in a SQLite file of one machine.

Neither pyrate-limiter nor limits keeps what is promised here: both count by the clock of the process that asks, know
neither calls side by side nor tokens that are corrected later, and take from one limit at a time, so that a call which
the second limit refuses has used up the first; and nobody waits in an order.
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
