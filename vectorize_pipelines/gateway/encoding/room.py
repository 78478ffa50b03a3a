"""The limits of what may wait for the encoders, and the time after which a refused caller is to try again.

Made and used by `batching`, under the lock of its queue.
"""

import math
import time
from http import HTTPStatus

from vectorize_pipelines.gateway.problems import Problem

#: Of the room for what waits, this part is kept for small requests.
URGENT_ROOM = 8

#: Who is told to come later, is told so many seconds at the most; and this many while no rate is known.
LONGEST_RETRY_SECONDS, UNKNOWN_RETRY_SECONDS = 60, 5

#: The rate is that of about so many seconds of work.
RATE_SECONDS = 10.0


class WaitingRoom:
    """The contents that wait, at most so many, and how fast they are encoded. Not thread-safe.

    waiting  how many there are
    """

    def __init__(self, most: int) -> None:
        self.waiting = 0
        self._most = most
        self._bulk_room = most - most // URGENT_ROOM
        self._rate = _Rate()

    def check(self, contents: int, *, urgent: bool) -> None:
        """Raise `Problem` where so many more have no room."""
        room = self._most if urgent else self._bulk_room
        if contents > room:
            raise Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{contents} texts are more than the {room} that may wait for the encoder: send fewer at once",
            )
        if self.waiting + contents > room:
            seconds = self._rate.seconds_for(self.waiting)
            wait = UNKNOWN_RETRY_SECONDS if seconds is None else max(1, min(LONGEST_RETRY_SECONDS, math.ceil(seconds)))
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{self.waiting} texts wait for the encoder already: try again in {wait} s",
                headers={"Retry-After": str(wait)},
            )

    def begin(self, contents: int) -> None:
        """Note that so many wait no more, since a call for them begins."""
        self.waiting -= contents
        self._rate.begun()

    def end(self, contents: int) -> None:
        """Note that the call for so many has ended."""
        self._rate.ended(contents)


class _Rate:
    """The recent rate of encoding, in contents a second, while there is something to encode."""

    def __init__(self) -> None:
        self._contents = self._seconds = self._since = 0.0
        self._under_way = 0

    def begun(self) -> None:
        """Note that a call begins."""
        if not self._under_way:
            self._since = time.monotonic()
        self._under_way += 1

    def ended(self, contents: int) -> None:
        """Note that a call has ended."""
        now = time.monotonic()
        self._under_way -= 1
        self._contents += contents
        self._seconds, self._since = self._seconds + now - self._since, now
        if self._seconds > RATE_SECONDS:
            self._contents, self._seconds = self._contents / 2, self._seconds / 2

    def seconds_for(self, contents: int) -> float | None:
        """Return how long so many contents take; None where nothing has been encoded yet."""
        return contents * self._seconds / self._contents if self._contents else None
