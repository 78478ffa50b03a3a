"""The sessions of browsers: what stands in a cookie in place of a token.

A cookie goes to whatever listens at another port of the same host too, and lies in the files of the browser. So it
holds an id that is good for this server only, until it ends or the day is over, and never the token.
Called by `gateway.door.auth` and `gateway.routes.signin`.
"""

import hashlib
import secrets
import time
from dataclasses import dataclass

from starlette.datastructures import Headers

COOKIE = "vectorize_session"
SESSION_SECONDS = 12 * 3600
MOST_SESSIONS = 10_000


@dataclass(frozen=True, slots=True)
class _Session:
    token: bytes
    ends_at: float


class Sessions:
    """The sessions of one server; they end with its process. `token` is always the digest of a token."""

    def __init__(self, most: int = MOST_SESSIONS, seconds: float = SESSION_SECONDS) -> None:
        self._most, self._seconds = most, seconds
        # By the hash of the id: what a search for a key tells by its duration is worth nothing. The oldest ends first.
        self._sessions: dict[bytes, _Session] = {}

    def begin(self, token: bytes) -> str:
        """Return the id of a new session. With too many, the oldest one ends."""
        self._drop_ended()
        while len(self._sessions) >= self._most:
            del self._sessions[next(iter(self._sessions))]
        session_id = secrets.token_urlsafe(32)
        self._sessions[_key(session_id)] = _Session(token, time.monotonic() + self._seconds)
        return session_id

    def token_of(self, session_id: str) -> bytes | None:
        """Return the token that a session was begun with; None where there is none, or it has ended."""
        session = self._sessions.get(_key(session_id))
        return None if session is None or session.ends_at <= time.monotonic() else session.token

    def end(self, session_id: str) -> None:
        """End a session, if there is one."""
        self._sessions.pop(_key(session_id), None)

    def _drop_ended(self) -> None:
        now = time.monotonic()
        while self._sessions:
            oldest = next(iter(self._sessions))
            if self._sessions[oldest].ends_at > now:
                return
            del self._sessions[oldest]


def session_id_in(headers: Headers) -> str | None:
    """Return the id of the session that a browser sends.

    None also for two different ones: a page of a neighbouring host may have added one, and which it is nobody knows.
    """
    found = set()
    for header in headers.getlist("cookie"):
        for part in header.split(";"):
            name, _, value = part.partition("=")
            if name.strip() == COOKIE:
                found.add(value.strip())
    return found.pop() if len(found) == 1 else None


def _key(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode()).digest()
