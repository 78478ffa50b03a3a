"""Answers of models by what was asked, so that the same content is judged once.

`AnswerCache` is what `chat` calls. It lies in Redis where that is configured, else in one SQLite file for the processes
of a machine. All of it can be lost: what it held is asked again. A store that fails is told of, and done without.
"""

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import home
from vectorize_pipelines.state.loop_file import LoopFile
from vectorize_pipelines.state.redis_connection import open_async_redis, redis_errors

if TYPE_CHECKING:
    import redis.asyncio

logger = logging.getLogger(__name__)

#: Answers that the SQLite file keeps at most: about half a gigabyte. Those that expire first go first.
MOST_ANSWERS = 1_000_000
#: After so many answers expired ones are removed.
_PUTS_TOGETHER = 1000
_REMADE = "what it held is asked again"
_FORMAT = 1
_SCHEMA = """
create table if not exists answers (key text primary key, answer text not null, until real not null) without rowid;
create index if not exists answers_by_end on answers (until);
"""
_REDIS_PREFIX = "vectorize:answers:"


class AnswerStore(Protocol):
    """Where answers lie. Every method may raise a `VectorizeError`; used by one event loop."""

    async def get(self, key: str) -> str | None:
        """Return what was put under a key, and has not expired."""

    async def put(self, key: str, answer: str) -> None:
        """Put an answer in the place of the one that is there."""

    async def close(self) -> None:
        """Close the connection; a second call does nothing."""


class AnswerCache:
    """Answers under a key, for `providers.answers_kept_seconds`. Used by one event loop."""

    def __init__(self, store: AnswerStore):
        """Keep answers in `store`, which `close` closes."""
        self._store = store
        self._failing = False

    @classmethod
    def open(cls, settings: Settings) -> Self | None:
        """Return the cache of an installation, None where the settings want none. Raises `SettingsError`."""
        seconds = settings.providers.answers_kept_seconds
        if not seconds:
            return None
        if settings.redis.url is not None:
            return cls(RedisAnswers(settings, seconds))
        return cls(SQLiteAnswers(home.answers(settings), seconds))

    async def get(self, key: str) -> str | None:
        """Return the answer under a key, None where there is none, or where the store fails."""
        try:
            answer = await self._store.get(key)
        except VectorizeError as error:
            self._note(error)
            return None
        self._note(None)
        return answer

    async def put(self, key: str, answer: str) -> None:
        """Keep an answer, unless the store fails."""
        try:
            await self._store.put(key, answer)
        except VectorizeError as error:
            self._note(error)
        else:
            self._note(None)

    async def close(self) -> None:
        """Close the cache; a second call does nothing."""
        await self._store.close()

    def _note(self, error: VectorizeError | None) -> None:
        """Say once that the store fails, and once that it works again."""
        if error is not None and not self._failing:
            logger.warning("answers of models are not kept, and may be asked again: %s", error)
        elif error is None and self._failing:
            logger.info("answers of models are kept again")
        self._failing = error is not None


class RedisAnswers:
    """An `AnswerStore` in Redis, which forgets what has expired by itself."""

    def __init__(self, settings: Settings, seconds: float):
        """Connect with the first call. Raises `SettingsError` and `MissingExtraError`."""
        self._settings = settings
        self._milliseconds = max(1, round(seconds * 1000))
        self._redis: redis.asyncio.Redis = open_async_redis(settings)

    async def get(self, key: str) -> str | None:
        """As in `AnswerStore`."""
        with redis_errors(self._settings):
            found = await self._redis.get(_REDIS_PREFIX + key)
        return found.decode() if isinstance(found, bytes) else found

    async def put(self, key: str, answer: str) -> None:
        """As in `AnswerStore`."""
        with redis_errors(self._settings):
            await self._redis.set(_REDIS_PREFIX + key, answer, px=self._milliseconds)

    async def close(self) -> None:
        """As in `AnswerStore`."""
        with redis_errors(self._settings):
            await self._redis.aclose()


class SQLiteAnswers:
    """An `AnswerStore` in one file, which any number of processes may use at once."""

    def __init__(self, file: Path, seconds: float, now: Callable[[], float] = time.time):
        """Open the file with the first call. `now` returns seconds since 1970."""
        self._file = LoopFile(file, _FORMAT, _SCHEMA, _REMADE)
        self._seconds = seconds
        self._now = now
        self._puts = 0

    async def get(self, key: str) -> str | None:
        """As in `AnswerStore`."""

        def look(connection: sqlite3.Connection) -> str | None:
            query = "select answer from answers where key = ? and until > ?"
            found = connection.execute(query, (key, self._now())).fetchone()
            return None if found is None else str(found[0])

        return await self._file.read(look)

    async def put(self, key: str, answer: str) -> None:
        """As in `AnswerStore`."""

        def write(connection: sqlite3.Connection) -> None:
            until = self._now() + self._seconds
            connection.execute("insert or replace into answers values (?, ?, ?)", (key, answer, until))

        await self._file.do(write)
        if self._puts % _PUTS_TOGETHER == 0:
            await self._file.do(self._make_room, briefly=False)
        self._puts += 1

    async def close(self) -> None:
        """As in `AnswerStore`."""
        await self._file.close()

    def _make_room(self, connection: sqlite3.Connection) -> None:
        connection.execute("delete from answers where until <= ?", (self._now(),))
        (number,) = connection.execute("select count(*) from answers").fetchone()
        if number > MOST_ANSWERS:
            oldest = "select key from answers order by until limit ?"
            connection.execute(f"delete from answers where key in ({oldest})", (number - MOST_ANSWERS,))
