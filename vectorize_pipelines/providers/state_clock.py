"""The clock of the state that processes share, as this process sees it: by how much it differs from its own."""

import math

#: How fast two clocks may drift apart: 200 seconds in a million, about what cheap ones do.
_DRIFT = 2e-4


class StateClock:
    """Bounds of the difference of the two clocks, in seconds, from the answers of the state; quick ones narrow them."""

    def __init__(self) -> None:
        self._least, self._most = -math.inf, math.inf
        self._latest = 0.0

    def observe(self, asked: float, said: float, heard: float) -> None:
        """Take note of an answer: asked for and heard at these times here, while the state's clock `said` this."""
        apart = _DRIFT * max(heard - self._latest, 0.0)
        self._latest = heard
        self._least, self._most = max(self._least - apart, said - heard), min(self._most + apart, said - asked)
        if self._least > self._most:  # one of the clocks was set
            self._least, self._most = said - heard, said - asked

    def here(self, at: float) -> tuple[float, float]:
        """Return the earliest and the latest that a time of the state's clock can be here."""
        return at - self._most, at - self._least
