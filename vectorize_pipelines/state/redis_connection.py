"""Connections to the Redis server of the settings, with bounded waits, and its failures without the password."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vectorize_pipelines.core.extras import is_installed, needs
from vectorize_pipelines.core.urls import shown_text
from vectorize_pipelines.errors import MissingExtraError, RedisUnavailableError, SettingsError
from vectorize_pipelines.settings import Settings

if TYPE_CHECKING:
    import redis
    import redis.asyncio

#: For a connection, and for the answer to a command.
TIMEOUT_SECONDS = 5.0
#: A connection that was idle for so long is tried before it is used.
_HEALTH_SECONDS = 30
#: Connections of one process; a caller waits for one of them to be free.
_CONNECTIONS = 16
_SCHEMES = ("redis", "rediss", "unix")
_REMEDY = (
    "write redis://user:password@host:6379/0, with what is neither letter nor digit of the password as %XX; "
    "rediss:// is with TLS"
)


def redis_address(settings: Settings) -> str:
    """Return host and port, or the path of the socket, of `redis.url`. Raises `SettingsError` where it is no address.

    Nothing of user, password and database is in it.
    """
    url = "" if settings.redis.url is None else settings.redis.url.get_secret_value()
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 6379
    except ValueError:
        parts, host, port = urlsplit(""), None, 0
    # An @ behind the host is that of a password with a / in it.
    complete = parts.scheme in _SCHEMES and "@" not in parts.path and bool(host or parts.scheme == "unix")
    if not complete:
        raise SettingsError(f"redis.url (VECTORIZE_REDIS__URL) is no address of a Redis server: {_REMEDY}")
    return parts.path if parts.scheme == "unix" else f"{host}:{port}"


def open_redis(settings: Settings, seconds: float = TIMEOUT_SECONDS) -> "redis.Redis":
    """Return a client of the server in `redis.url`; it connects with its first command, and waits so long for each.

    Its commands are to be called within `redis_errors`. Raises `SettingsError`, and `MissingExtraError`.
    """
    options = _options(settings, seconds)
    import redis

    with _bad_url():
        pool = redis.BlockingConnectionPool.from_url(_url(settings), **options)
    return redis.Redis(connection_pool=pool)


def open_async_redis(settings: Settings) -> "redis.asyncio.Redis":
    """Return the same as `open_redis` for the event loop that uses it first."""
    options = _options(settings)
    import redis.asyncio

    with _bad_url():
        pool = redis.asyncio.BlockingConnectionPool.from_url(_url(settings), **options)
    return redis.asyncio.Redis(connection_pool=pool)


@dataclass(frozen=True, slots=True)
class RedisMemory:
    """The memory of a server: what is in use, `maxmemory` (0: no limit), and `maxmemory-policy`. In bytes."""

    used_bytes: int
    limit_bytes: int
    policy: str

    @property
    def evicts(self) -> bool:
        """Return whether the server makes room by itself."""
        return bool(self.limit_bytes) and self.policy != "noeviction"


def redis_memory(client: "redis.Redis") -> RedisMemory:
    """Return what a server says of its memory. To be called within `redis_errors`."""
    said = client.info("memory")
    limit, policy = said.get("maxmemory", 0), said.get("maxmemory_policy", "noeviction")  # some hosts withhold them
    return RedisMemory(int(said.get("used_memory", 0)), int(limit), str(policy))


def ping_redis(settings: Settings, seconds: float = TIMEOUT_SECONDS) -> tuple[str, RedisMemory]:
    """Return version and memory of the server, which has answered.

    Raises as `open_redis`, and `RedisUnavailableError`.
    """
    client = open_redis(settings, seconds)
    try:
        with redis_errors(settings):
            version: str = client.info("server")["redis_version"]
            return version, redis_memory(client)
    finally:
        client.close()


@contextmanager
def redis_errors(settings: Settings) -> Iterator[None]:
    """Turn what redis-py raises in the body into `RedisUnavailableError`, with the address and without the password."""
    import redis

    try:
        yield
    except (redis.RedisError, OSError) as error:
        reason = shown_text(str(error) or type(error).__name__, _url(settings))
        raise RedisUnavailableError(f"Redis at {redis_address(settings)} cannot be used: {reason}") from None


def _url(settings: Settings) -> str:
    return "" if settings.redis.url is None else settings.redis.url.get_secret_value()


def _options(settings: Settings, seconds: float = TIMEOUT_SECONDS) -> dict[str, Any]:
    redis_address(settings)
    if not is_installed("redis"):
        raise MissingExtraError(needs("redis.url", "redis"))
    return {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "health_check_interval": _HEALTH_SECONDS,
        "max_connections": _CONNECTIONS,
        "timeout": seconds,  # for a free connection of the pool
    }


@contextmanager
def _bad_url() -> Iterator[None]:
    try:
        yield
    except ValueError:  # whose message may repeat the URL
        raise SettingsError(f"redis.url (VECTORIZE_REDIS__URL) is no address of a Redis server: {_REMEDY}") from None
