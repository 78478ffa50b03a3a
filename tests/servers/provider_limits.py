"""The limits that the provider of the tests holds each key to: sliding windows, counted when a request arrives."""

import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KeyLimits:
    """What one key may do; None: any number.

    qps          requests in any second
    rpm          requests in any minute
    tpm          tokens in any minute, those of the answer included
    concurrency  requests at once
    """

    qps: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None


@dataclass
class _Window:
    """Amounts that arrived within the last `seconds`."""

    seconds: float
    arrived: deque[tuple[float, int]] = field(default_factory=deque)
    total: int = 0

    def used(self, now: float) -> int:
        while self.arrived and self.arrived[0][0] <= now - self.seconds:
            self.total -= self.arrived.popleft()[1]
        return self.total

    def add(self, now: float, amount: int) -> None:
        self.arrived.append((now, amount))
        self.total += amount

    def free_in(self, now: float) -> float:
        """Return the seconds until the oldest amount has left the window."""
        return self.arrived[0][0] + self.seconds - now if self.arrived else 0.0


class KeyUse:
    """What one key has done. Not safe for use by several threads.

    most_early  seconds by which the worst request came before its windows had room for it
    """

    def __init__(self, limits: KeyLimits, second: float, minute: float):
        """Begin with empty windows, which last `second` and `minute` seconds."""
        self.limits = limits
        self.requests = 0
        self.accepted = 0
        self.running = 0
        self.most_running = 0
        self.most_early = 0.0
        self.violations: Counter[str] = Counter()
        self._windows = {"qps": _Window(second), "rpm": _Window(minute), "tpm": _Window(minute)}

    def admit(self, tokens: int) -> float | None:
        """Count a request that arrives now. Return None, or the seconds after which it may be repeated."""
        now = time.monotonic()
        self.requests += 1
        exceeded = list(self._exceeded(now, tokens))
        if exceeded:
            self.violations.update(name for name, _ in exceeded)
            early = max(seconds for _, seconds in exceeded)
            self.most_early = max(self.most_early, early)
            return early
        for name, amount in (("qps", 1), ("rpm", 1), ("tpm", tokens)):
            self._windows[name].add(now, amount)
        self.accepted += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        return None

    def end(self) -> None:
        """Note that a request that was admitted is over."""
        self.running -= 1

    def _exceeded(self, now: float, tokens: int) -> Iterator[tuple[str, float]]:
        for name, limit, amount in (
            ("qps", self.limits.qps, 1),
            ("rpm", self.limits.rpm, 1),
            ("tpm", self.limits.tpm, tokens),
        ):
            window = self._windows[name]
            if limit is not None and window.used(now) + amount > limit:
                yield name, window.free_in(now)
        if self.limits.concurrency is not None and self.running >= self.limits.concurrency:
            yield "concurrency", 0.05
