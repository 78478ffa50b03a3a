"""Loaded encoders, kept by the process rather than by whoever asked for one.

A Dagster resource lives for one run and a search for one query, but a model takes seconds to load: executors
that keep their process keep their models. Used by the resource and by the command line through `encoder_cache()`.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from vectorize_pipelines.encoders.protocol import Encoder


class EncoderKey(NamedTuple):
    """What decides whether two loads give the same encoder."""

    fingerprint: str
    engine: str
    device: str


@dataclass
class _Entry:
    """A loaded encoder, or one that is being loaded while `loading` is held."""

    loading: threading.Lock = field(default_factory=threading.Lock)
    encoder: Encoder | None = None
    leases: int = 0


class EncoderCache:
    """Least-recently-used cache of loaded encoders, for all threads of a process.

    At most `max_loaded` stay loaded beyond their use: more only while more are in use at the same time. An
    encoder is closed when it is evicted and the last lease on it has ended.
    """

    def __init__(self, max_loaded: int = 3) -> None:
        if max_loaded < 1:
            raise ValueError(f"max_loaded must be at least 1, not {max_loaded}")
        self._max_loaded = max_loaded
        self._lock = threading.Lock()
        self._entries: OrderedDict[EncoderKey, _Entry] = OrderedDict()

    @contextlib.contextmanager
    def lease(self, key: EncoderKey, load: Callable[[], Encoder]) -> Iterator[Encoder]:
        """The encoder under `key`, loaded by `load` if it is not there; it stays loaded inside the context.

        Threads that ask for the same key wait for one load; other keys are not held up. What `load` raises
        passes through, and the next caller tries again.
        """
        entry = self._take(key)
        try:
            with entry.loading:
                if entry.encoder is None:
                    entry.encoder = load()
            yield entry.encoder
        finally:
            self._return(key, entry)

    def loaded(self) -> dict[EncoderKey, int]:
        """What is loaded, least recently used first, and the bytes that its weights take."""
        with self._lock:
            encoders = {key: entry.encoder for key, entry in self._entries.items()}
        return {key: encoder.memory_bytes for key, encoder in encoders.items() if encoder is not None}

    def clear(self) -> None:
        """Closes every encoder that is not in use; one in use is closed when its last lease ends."""
        with self._lock:
            removed = [entry.encoder for entry in self._entries.values() if entry.leases == 0]
            self._entries.clear()
        _close(removed)

    def _take(self, key: EncoderKey) -> _Entry:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            entry.leases += 1
            return entry

    def _return(self, key: EncoderKey, entry: _Entry) -> None:
        with self._lock:
            entry.leases -= 1
            removed = []
            if entry.leases == 0 and (self._entries.get(key) is not entry or entry.encoder is None):
                removed.append(entry.encoder)  # cleared meanwhile, or never loaded
                if self._entries.get(key) is entry:
                    del self._entries[key]
            removed.extend(self._evict())
        _close(removed)

    def _evict(self) -> list[Encoder | None]:
        idle = [key for key, entry in self._entries.items() if entry.leases == 0]
        surplus = max(0, len(self._entries) - self._max_loaded)
        return [self._entries.pop(key).encoder for key in idle[:surplus]]


def _close(encoders: list[Encoder | None]) -> None:
    for encoder in encoders:
        if encoder is not None:
            encoder.close()


@cache
def encoder_cache() -> EncoderCache:
    """The process's own cache."""
    return EncoderCache()
