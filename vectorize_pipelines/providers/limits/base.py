"""What a place that holds the use of keys promises, and the values that pass to and from it. Times are in seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

Strategy: TypeAlias = Literal["round_robin", "least_loaded", "priority"]

#: A waiting caller asks again within this, so that it sees keys that were added or enabled.
LONGEST_WAIT = 1.0
#: A key that has room within this is lent for then. Whoever waits would else come later than it has room, by as much as
#: it takes to wake up and to ask, and of a limit by second some hundredths would be lost so.
AHEAD = 0.05
#: Where a key waits for a call to end, which nobody can foretell, or an older caller has not come for its key yet.
UNKNOWN_WAIT = 0.01
#: A caller that waits and does not ask again for so long after it was to is gone.
TICKET_GRACE = 1.0
#: Of the disabled keys, those that the file itself disables.
BY_FILE = "disabled in the file of keys"


@dataclass(frozen=True, slots=True)
class Windows:
    """The lengths of the two windows, and by how much more than that a call counts.

    A call counts from when its key is lent, and its request reaches the provider some time later, now sooner and now
    later: without a margin two requests would come nearer to each other than their keys were lent.
    """

    second: float = 1.0
    minute: float = 60.0
    second_margin: float = 0.045
    minute_margin: float = 0.5
    #: The margin of the short window grows to this where it costs nothing, since the long one limits the key anyway.
    second_margin_most: float = 0.25

    def second_for(self, qps_limit: int | None, rpm_limit: int | None) -> float:
        """Return how long a call counts against the limit by second of a key with these limits."""
        margin = self.second_margin
        if qps_limit is not None and rpm_limit is not None:
            spare = 0.9 * (qps_limit * self.minute / (rpm_limit * self.second) - 1) * self.second
            margin = min(max(margin, spare), max(margin, self.second_margin_most))
        return self.second + margin

    @property
    def long(self) -> float:
        """How long a call and its tokens count against the limits by minute."""
        return self.minute + self.minute_margin


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of a key. `id`: a salted hash of it; `second`: how long a call counts against `qps`."""

    id: str
    priority: int = 0
    qps: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    second: float = 1.0

    @property
    def by_time(self) -> bool:
        """Return whether any of them is by second or by minute."""
        return self.qps is not None or self.rpm is not None or self.tpm is not None


@dataclass(frozen=True, slots=True)
class Request:
    """A caller's wish for one of `keys`. `lease`: a new id for the loan; `ticket`: its place in the queue."""

    keys: Sequence[KeyLimits]
    strategy: Strategy
    tokens: int
    lease: str
    lease_seconds: float
    ticket: str


@dataclass(frozen=True, slots=True)
class Grant:
    """The key `key_id` is lent at `now` for a call that begins at `starts`, both by the clock of the state."""

    key_id: str
    now: float
    starts: float


@dataclass(frozen=True, slots=True)
class Wait:
    """No key now: ask again after `seconds`. `next_available`: when a key is free, None: all are disabled.

    `for_release`: a key is free as soon as a call with it ends.
    """

    seconds: float
    next_available: float | None
    for_release: bool


@dataclass(frozen=True, slots=True)
class Lease:
    """A loan, as it was granted. `tokens`: those that the call was expected to take."""

    id: str
    key_id: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Pause:
    """How long a key cools: what the provider asked for (None: `default`, doubled while it goes on), at most `most`."""

    asked: float | None
    default: float
    most: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call.

    tokens     those that it took; None: as expected
    success    false for a failure of whatever kind
    pause      the provider answered 429
    refused    why the key is disabled
    failed     the provider that failed, and how; says nothing about the key
    provider   the name of the provider
    unused     no call was made: it counts for nothing
    cancelled  the call was given up: it counts, and says nothing of the key or the provider
    """

    provider: str
    success: bool = True
    tokens: int | None = None
    pause: Pause | None = None
    refused: str | None = None
    failed: str | None = None
    unused: bool = False
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What a key is used for now. `next_available`: None where it is disabled (`disabled` says why)."""

    disabled: str | None = None
    cooling: float = 0.0
    in_use: int = 0
    requests_second: int = 0
    requests_minute: int = 0
    tokens_minute: int = 0
    next_available: float | None = 0.0
    calls: int = 0
    failures: int = 0
    rate_limited: int = 0


@dataclass(frozen=True, slots=True)
class ProviderUse:
    """Failures of a provider: all, those since it last answered, and the latest."""

    failures: int
    in_a_row: int
    latest: str


class SaltChangedError(Exception):
    """The state was lost and begun again: ids are to be made with `salt`; it knows not what the file disables."""

    def __init__(self, salt: bytes):
        super().__init__("the salt of the ids of keys has changed")
        self.salt = salt


class SharedUse(Protocol):
    """The use of keys by all processes. Every method is atomic, and raises `KeysError` where the state is away.

    Those that take ids raise `SaltChangedError` where these were made with another salt than the state has; `acquire`
    also where the state was lost and has the same one again.
    """

    salt: bytes

    async def open(self) -> bytes:
        """Return the salt that ids are to be made with; to be called first."""

    async def acquire(self, request: Request) -> Grant | Wait:
        """Lend the first key, by the strategy, that has room in every limit, and count the call; else queue.

        A call that came later gets none as long as those before it need what is free. Whoever asks once more for the
        same lease, since the answer was lost, gets the key that it has already.
        """

    async def begin(self, lease: Lease, limits: KeyLimits, within: float) -> float | None:
        """Count the call from `within` seconds from now, since it begins by then, and later than its key was lent.

        Return what the clock of the state says now; None, with the loan taken back, where the windows of the key's
        `limits` have no room for the call then, or the loan has ended.
        """

    async def leave(self, ticket: str) -> None:
        """Leave the queue."""

    async def release(self, lease: Lease, outcome: Outcome) -> bool:
        """End a loan and note what became of the call. Return whether this disabled the key.

        The loan of a process that died ends by itself; releasing it then does no harm.
        """

    async def use(self, keys: Sequence[KeyLimits]) -> Mapping[str, KeyUse]:
        """Return the use of keys by id."""

    async def providers(self, names: Sequence[str]) -> Mapping[str, ProviderUse]:
        """Return the failures of providers by name."""

    async def disable(self, ids: Sequence[str], reason: str) -> None:
        """Disable keys, whatever they were disabled for before."""

    async def enable(self, ids: Sequence[str], only: str | None = None) -> None:
        """Enable keys, and end their cooling; `only` those that are disabled for this reason."""

    async def close(self) -> None:
        """Leave the state."""
