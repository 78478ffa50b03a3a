"""The use of keys in Redis, for the processes of any number of machines: one script a call, by the server's clock.

Everything lies below one prefix with a hash tag, so that a cluster keeps it on one node.
"""

import json
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.errors import KeysError, RedisUnavailableError
from vectorize_pipelines.providers.limits.base import (
    AHEAD,
    LONGEST_WAIT,
    TICKET_GRACE,
    UNKNOWN_WAIT,
    Grant,
    KeyLimits,
    KeyUse,
    Lease,
    Outcome,
    Pause,
    ProviderUse,
    Request,
    SaltChangedError,
    Wait,
    Windows,
)
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.redis_connection import open_async_redis, redis_errors

if TYPE_CHECKING:
    from redis.commands.core import AsyncScript

PREFIX = "{vectorize:keys}:"
#: The one key that the scripts are given; they make the other names of its prefix.
_SALT = f"{PREFIX}salt"
_QUEUE = f"{PREFIX}queue"
_NO_LIMIT = -1.0
#: As many sets of keys (by provider and model) are kept in the form that the scripts read.
_SETS = 100
_FIELDS_OF_TIME = ("cooling", "next_available")


class RedisUse:
    """`SharedUse` in the Redis server of the settings. What is lost with the server begins again."""

    def __init__(self, settings: Settings, windows: Windows):
        """Prepare the connection, which is made by `open`. Raises `SettingsError`, and `MissingExtraError`."""
        self.salt = b""
        self._settings = settings
        self._windows = windows
        self._redis = open_async_redis(settings)
        names = ("acquire", "begin", "release", "use", "change")
        self._acquire, self._begin, self._release, self._use, self._change = map(self._script, names)
        self._made: dict[int, tuple[Sequence[KeyLimits], tuple[bytes, bytes]]] = {}

    async def open(self) -> bytes:
        """As in `SharedUse`."""
        with self._errors():
            await self._redis.set(_SALT, secrets.token_hex(16), nx=True)
            salt = await self._redis.get(_SALT)
        assert isinstance(salt, bytes), "it was just set, and no client here decodes answers"
        self.salt = salt
        return salt

    async def acquire(self, request: Request) -> Grant | Wait:
        """As in `SharedUse`."""
        ids, limits = self._packed(request.keys)
        times = self._times(request.lease_seconds)
        arguments = (
            *(self.salt, request.strategy, request.tokens, request.lease, request.ticket),
            *(times, ids, limits),
        )
        answer = await self._call(self._acquire, arguments)
        match answer:
            case [b"key", key_id, now, starts]:
                return Grant(key_id.decode(), now / 1e6, starts / 1e6)
            case [b"wait", pause, next_available, for_release]:
                return Wait(pause / 1e6, next_available / 1e6, bool(for_release))
            case _:
                return Wait(LONGEST_WAIT, None, False)

    async def begin(self, lease: Lease, limits: KeyLimits, within: float) -> float | None:
        """As in `SharedUse`."""
        times = (_us(within), _us(self._windows.long))
        arguments = (self.salt, lease.key_id, lease.id, lease.tokens, *times, _limits(limits))
        now = await self._call(self._begin, arguments)
        return None if now is None else float(now) / 1e6

    async def leave(self, ticket: str) -> None:
        """As in `SharedUse`."""
        with self._errors():
            await self._redis.hdel(_QUEUE, ticket)

    async def release(self, lease: Lease, outcome: Outcome) -> bool:
        """As in `SharedUse`."""
        said: dict[str, Any] = {"provider": outcome.provider, "success": outcome.success, "unused": outcome.unused}
        said["cancelled"] = outcome.cancelled
        for name in ("tokens", "refused", "failed"):
            if getattr(outcome, name) is not None:
                said[name] = getattr(outcome, name)
        if outcome.pause is not None:
            said["pause"] = _pause(outcome.pause)
        arguments = (self.salt, lease.key_id, lease.id, lease.tokens, json.dumps(said))
        return bool(await self._call(self._release, arguments))

    async def use(self, keys: Sequence[KeyLimits]) -> Mapping[str, KeyUse]:
        """As in `SharedUse`."""
        arguments = (self.salt, _us(self._windows.long), *self._packed(keys))
        answer = await self._call(self._use, arguments)
        found = {}
        for key, text in zip(keys, answer[1:], strict=True):
            fields = json.loads(text)
            fields |= {name: fields[name] / 1e6 for name in _FIELDS_OF_TIME}
            if fields["disabled"] is not None:
                fields["next_available"] = None
            fields["requests_minute"] = int(fields["requests_minute"])
            found[key.id] = KeyUse(**fields)
        return found

    async def providers(self, names: Sequence[str]) -> Mapping[str, ProviderUse]:
        """As in `SharedUse`."""
        found = {}
        with self._errors():
            for name in names:
                failures, in_a_row, latest = await self._redis.hmget(
                    f"{PREFIX}provider:{name}", ["failures", "in_a_row", "latest"]
                )
                found[name] = ProviderUse(int(failures or 0), int(in_a_row or 0), _text(latest))
        return found

    async def disable(self, ids: Sequence[str], reason: str) -> None:
        """As in `SharedUse`."""
        await self._call(self._change, (self.salt, reason, "", *ids))

    async def enable(self, ids: Sequence[str], only: str | None = None) -> None:
        """As in `SharedUse`."""
        await self._call(self._change, (self.salt, "", only or "", *ids))

    async def close(self) -> None:
        """As in `SharedUse`."""
        await self._redis.aclose()

    def _script(self, name: str) -> "AsyncScript":
        text = files(__package__).joinpath(f"{name}.lua").read_text(encoding="utf-8")
        return self._redis.register_script(text)  # sent once a server, then named by its hash

    async def _call(self, script: "AsyncScript", arguments: Sequence[Any]) -> Any:
        with self._errors():
            answer = await script(keys=(_SALT,), args=arguments)
        if isinstance(answer, list) and answer and answer[0] == b"salt":
            raise SaltChangedError(answer[1])
        return answer

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with redis_errors(self._settings):
                yield
        except RedisUnavailableError as error:
            raise KeysError(f"the state of the API keys cannot be used: {error}") from None

    def _times(self, lease_seconds: float) -> bytes:
        times = (lease_seconds, self._windows.long, LONGEST_WAIT, UNKNOWN_WAIT, TICKET_GRACE, AHEAD)
        return struct.pack(">6d", *map(_us, times))

    def _packed(self, keys: Sequence[KeyLimits]) -> tuple[bytes, bytes]:
        """Return ids and limits as the scripts read them: made once for what is asked for again and again."""
        made = self._made.get(id(keys))
        if made is None or made[0] is not keys:
            if len(self._made) >= _SETS:
                self._made.clear()
            packed = ("".join(key.id for key in keys).encode(), b"".join(map(_limits, keys)))
            self._made[id(keys)] = made = (keys, packed)
        return made[1]


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _pause(pause: Pause) -> dict[str, int]:
    times = {"default": pause.default, "most": pause.most, "asked": pause.asked}
    return {name: _us(seconds) for name, seconds in times.items() if seconds is not None}


def _limits(key: KeyLimits) -> bytes:
    limits = (_NO_LIMIT if limit is None else limit for limit in (key.qps, key.rpm, key.tpm, key.concurrency))
    return struct.pack(">6d", key.priority, *limits, _us(key.second))
