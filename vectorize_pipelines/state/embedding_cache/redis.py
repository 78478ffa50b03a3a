"""The embedding cache in Redis, for the processes of any number of machines."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vectorize_pipelines.errors import MissingExtraError, RedisUnavailableError, SettingsError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.embedding_cache.base import (
    EmbeddingCacheError,
    EmbeddingCacheFullError,
    EmbeddingCacheUnavailableError,
    Vector,
    cache_key,
    packed_vector,
    unpacked_vector,
)
from vectorize_pipelines.state.redis_connection import open_redis, redis_address, redis_errors, redis_memory

if TYPE_CHECKING:
    import redis

#: For a connection, and for the answer to one command: less than encoding a batch takes.
ANSWER_SECONDS = 2.0
#: A call that took longer so far sends no further command.
CALL_SECONDS = 4.0
#: Vectors of one command; the server answers nobody else meanwhile.
KEYS_TOGETHER = 256
#: The number is that of the form of keys and values.
PREFIX = b"vectorize:vectors:1:"
#: Of a server that evicts nothing, so much may be in use before nothing more is put there.
FULL_SHARE = 0.8
#: The time to live of what is found is made whole again once a quarter of it is over: not at each look.
_RENEWED_SHARE = 0.75
_GET = """
local values = redis.call('MGET', unpack(KEYS))
for i, value in ipairs(values) do
    if value and redis.call('PTTL', KEYS[i]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[i], ARGV[1]) end
end
return values
"""


class RedisEmbeddingCache:
    """An `EmbeddingCache` in the Redis server of the settings.

    A vector goes `cache.unused_days` days after its last use. How much memory all of them take is for the server to
    say, by its `maxmemory` and a policy that evicts. One that evicts nothing is not filled: others need it to write.
    There nothing is put once the server's memory exceeds `cache.max_bytes`, or `FULL_SHARE` of its own limit.
    """

    def __init__(self, settings: Settings):
        """Connect with the first call. Raises `EmbeddingCacheError` for a bad address, and without the library."""
        self._settings = settings
        self._max_bytes = settings.cache.max_bytes
        self._lifetime_ms = settings.cache.unused_days * 86_400_000
        try:
            self._redis: redis.Redis = open_redis(settings, ANSWER_SECONDS)
        except (SettingsError, MissingExtraError) as error:
            raise EmbeddingCacheError(str(error)) from None
        self._get = self._redis.register_script(_GET)

    def get(self, fingerprint: str, hashes: Sequence[bytes]) -> dict[bytes, Vector]:
        """Return vectors as `EmbeddingCache.get` does."""
        found: dict[bytes, Vector] = {}
        with self._errors():
            for some in self._portions(list(hashes)):
                keys = [cache_key(fingerprint, each) for each in some]
                times = (self._lifetime_ms, round(self._lifetime_ms * _RENEWED_SHARE))
                values = self._get(keys=[PREFIX + key for key in keys], args=times)
                for content_hash, key, stored in zip(some, keys, values, strict=True):
                    vector = unpacked_vector(key, stored)
                    if vector is not None:
                        found[content_hash] = vector
        return found

    def put(self, fingerprint: str, vectors: Mapping[bytes, Vector]) -> None:
        """Keep vectors as `EmbeddingCache.put` does."""
        with self._errors():
            self._require_room()
            for some in self._portions(list(vectors)):
                with self._redis.pipeline(transaction=False) as together:
                    for content_hash in some:
                        key = cache_key(fingerprint, content_hash)
                        together.set(PREFIX + key, packed_vector(key, vectors[content_hash]), px=self._lifetime_ms)
                    # By itself it would put the values of the command that failed into the error's message.
                    answers = together.execute(raise_on_error=False)
                failure = next((each for each in answers if isinstance(each, Exception)), None)
                if failure is not None:
                    raise failure

    def close(self) -> None:
        """Close as `EmbeddingCache.close` does."""
        self._redis.close()

    def _portions(self, hashes: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
        """Yield what one command is about, for as long as the call may take."""
        began = time.monotonic()
        for start in range(0, len(hashes), KEYS_TOGETHER):
            seconds = time.monotonic() - began
            if seconds > CALL_SECONDS:
                raise EmbeddingCacheUnavailableError(
                    f"Redis at {redis_address(self._settings)} is too slow: {seconds:.1f} s for {start} vectors"
                )
            yield hashes[start : start + KEYS_TOGETHER]

    def _require_room(self) -> None:
        memory = redis_memory(self._redis)
        if memory.evicts:
            return
        limit = self._max_bytes
        if memory.limit_bytes:
            limit = min(limit, int(memory.limit_bytes * FULL_SHARE))
        if memory.used_bytes > limit:
            raise EmbeddingCacheFullError(
                f"Redis at {redis_address(self._settings)} evicts nothing by itself, and its memory "
                f"({memory.used_bytes:,} bytes) exceeds {limit:,}: give it a maxmemory with the maxmemory-policy "
                "volatile-lru, or raise cache.max_bytes (VECTORIZE_CACHE__MAX_BYTES)"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import redis

        try:
            with redis_errors(self._settings):
                try:
                    yield
                except redis.exceptions.OutOfMemoryError:
                    raise EmbeddingCacheFullError(
                        f"Redis at {redis_address(self._settings)} is full and finds nothing to evict: raise its "
                        "maxmemory, or set its maxmemory-policy to volatile-lru"
                    ) from None
        except RedisUnavailableError as error:
            raise EmbeddingCacheUnavailableError(str(error)) from None
