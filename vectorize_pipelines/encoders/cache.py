"""Loaded encoders, kept by the process rather than by the code that asked for one.

A Dagster resource lives for one run and a search for one query, but a model takes seconds to load: executors
that keep their process keep their models. Used by the resource and by the command line through `encoder_cache()`.
"""

import contextlib
import gc
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from vectorize_pipelines.core.image_limits import DEFAULT_LIMITS, ImageLimits
from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.encoders.hardware.devices import free_memory
from vectorize_pipelines.errors import ModelTooLargeError

logger = logging.getLogger(__name__)

MAX_LOADED = 3


class EncoderKey(NamedTuple):
    """The key of loads that have the same encoder; `engine` and `precision` as they were asked for.

    `access`: what `Engine.access` says.
    """

    fingerprint: str
    engine: str
    device: str
    precision: str = "auto"
    token_budget: int | None = None
    token_budget_share: float = 1.0
    image_limits: ImageLimits = DEFAULT_LIMITS
    decoding_threads: int | None = None
    access: str = ""


@dataclass
class _Entry:
    """A loaded encoder, or one that is being loaded while `loading` is held.

    expected  bytes that the load is going to take, while it lasts
    """

    loading: threading.Lock = field(default_factory=threading.Lock)
    encoder: Encoder | None = None
    leases: int = 0
    expected: int = 0

    @property
    def memory(self) -> int:
        return self.expected if self.encoder is None else self.encoder.memory_bytes


class EncoderCache:
    """Least-recently-used cache of loaded encoders, for all threads of a process.

    At most `max_loaded` stay loaded beyond their use: more only while more are in use at the same time. An
    encoder is closed when it is evicted and the last lease on it has ended. `memory_bytes` bounds what all loaded
    ones take on a device together; None: what the device has.
    """

    def __init__(self, max_loaded: int = MAX_LOADED, memory_bytes: int | None = None) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[EncoderKey, _Entry] = OrderedDict()
        self.limit(max_loaded, memory_bytes)

    def limit(self, max_loaded: int, memory_bytes: int | None) -> None:
        """Set the limits from now on; what is loaded beyond them goes as leases end."""
        if max_loaded < 1:
            raise ValueError(f"max_loaded must be at least 1, not {max_loaded}")
        self._max_loaded = max_loaded
        self._memory_bytes = memory_bytes

    @contextlib.contextmanager
    def lease(self, key: EncoderKey, load: Callable[[], Encoder]) -> Iterator[Encoder]:
        """Hold the encoder under `key`, loaded by `load` if it is not there; it stays loaded inside the context.

        Threads that ask for the same key wait for one load; other keys are not held up. What `load` raises
        passes through, and the next caller tries again.
        """
        entry = self._take(key)
        try:
            with entry.loading:
                if entry.encoder is None:
                    began = time.monotonic()
                    entry.encoder = self._loaded(entry, load)
                    logger.info("loaded %s on %s in %.1f s", key.fingerprint, key.device, time.monotonic() - began)
            yield entry.encoder
        finally:
            self._return(key, entry)

    def make_room(self, key: EncoderKey, model: str, needed: int) -> None:
        """Make room for `model` under `key`. Called by its load once it knows how many bytes it takes, before it does.

        Closes idle encoders on the same device, least recently used first, until there is room. Raises
        `ModelTooLargeError` with the figures where that does not suffice.
        """
        while True:
            with self._lock:
                short = self._shortage(key, model, needed)
                idle = self._idle_on(key.device) if short is not None else None
                if idle is None and short is None:
                    self._entries[key].expected = needed
                    return
                if idle is None:
                    raise ModelTooLargeError(short)
                evicted = {idle: self._entries.pop(idle).encoder}
            _close(evicted)

    def loaded(self) -> dict[EncoderKey, int]:
        """Return what is loaded, least recently used first, and the bytes that its weights take."""
        with self._lock:
            encoders = {key: entry.encoder for key, entry in self._entries.items()}
        return {key: encoder.memory_bytes for key, encoder in encoders.items() if encoder is not None}

    def clear(self) -> None:
        """Close every encoder that is not in use; one in use is closed when its last lease ends."""
        with self._lock:
            removed = {key: entry.encoder for key, entry in self._entries.items() if entry.leases == 0}
            self._entries.clear()
        _close(removed)

    def _take(self, key: EncoderKey) -> _Entry:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            entry.leases += 1
            return entry

    def _loaded(self, entry: _Entry, load: Callable[[], Encoder]) -> Encoder:
        try:
            return load()
        finally:
            entry.expected = 0

    def _shortage(self, key: EncoderKey, model: str, needed: int) -> str | None:
        """Return why a load of so many bytes has no room; None where it has. Loads in progress count as done."""
        others = [entry for other, entry in self._entries.items() if other != key and other.device == key.device]
        loading = sum(entry.expected for entry in others if entry.encoder is None)
        free = free_memory(key.device) - loading
        taken = sum(entry.memory for entry in others)
        if self._memory_bytes is not None and taken + needed > self._memory_bytes:
            return too_large(model, key.device, needed, self._memory_bytes - taken, "encoder.memory_bytes")
        return too_large(model, key.device, needed, free) if needed > free else None

    def _idle_on(self, device: str) -> EncoderKey | None:
        """Return the least recently used encoder on a device that nobody uses."""
        idle = (key for key, entry in self._entries.items() if key.device == device and entry.leases == 0)
        return next(idle, None)

    def _return(self, key: EncoderKey, entry: _Entry) -> None:
        with self._lock:
            entry.leases -= 1
            removed: dict[EncoderKey, Encoder | None] = {}
            if entry.leases == 0 and (self._entries.get(key) is not entry or entry.encoder is None):
                removed[key] = entry.encoder  # cleared meanwhile, or never loaded
                if self._entries.get(key) is entry:
                    del self._entries[key]
            removed.update(self._evict())
        _close(removed)

    def _evict(self) -> dict[EncoderKey, Encoder | None]:
        idle = [key for key, entry in self._entries.items() if entry.leases == 0]
        surplus = max(0, len(self._entries) - self._max_loaded)
        return {key: self._entries.pop(key).encoder for key in idle[:surplus]}


def too_large(model: str, device: str, needed: int, free: int, limited_by: str | None = None) -> str:
    """Return the message for a model that does not fit. `limited_by` is the setting that leaves `free` bytes only."""
    because = f"{limited_by} leaves" if limited_by else "there are"
    remedy = f"raise {limited_by}" if limited_by else "end what else uses the memory"
    return (
        f"{model} takes about {_mebibytes(needed)} on {device} while it is loaded, and {because} "
        f"{_mebibytes(max(0, free))}; {remedy}, choose a smaller model, a 16-bit encoder.precision or another "
        "encoder.device"
    )


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _close(encoders: Mapping[EncoderKey, Encoder | None]) -> None:
    for key, encoder in encoders.items():
        if encoder is not None:
            freed = encoder.memory_bytes
            encoder.close()
            logger.info("unloaded %s on %s: %s freed", key.fingerprint, key.device, _mebibytes(freed))
    if encoders:
        gc.collect()  # what refers to itself, as modules of torch do, keeps its memory until then


@cache
def encoder_cache() -> EncoderCache:
    """Return the process's own cache."""
    return EncoderCache()
