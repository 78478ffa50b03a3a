"""What each embedding cache promises, and the form in which vectors lie in it."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]

_CHECKSUM_BYTES = 8


class EmbeddingCacheError(Exception):
    """The cache cannot be used, and is closed; who asked goes on without it."""


class EmbeddingCacheUnavailableError(EmbeddingCacheError):
    """The cache is away, or too slow. It stays open: the same call may succeed later."""


class EmbeddingCacheFullError(EmbeddingCacheError):
    """The cache has no room for more, but what it holds may be looked up. It stays open; there may be room later."""


class EmbeddingCache(Protocol):
    """Vectors under a model's fingerprint and a hash of the exact content. Used by one thread of a process at a time.

    Every method may raise `EmbeddingCacheError`, after which the cache is closed and not used again unless it is one of
    the two classes that say otherwise.
    """

    def get(self, fingerprint: str, hashes: Sequence[bytes]) -> dict[bytes, Vector]:
        """Return hash -> vector, of those that are there and whole. Called once a batch, before anything is encoded."""

    def put(self, fingerprint: str, vectors: Mapping[bytes, Vector]) -> None:
        """Keep vectors, in place of those under the same hashes. Called once a batch, after encoding."""

    def close(self) -> None:
        """Close the cache; a second call does nothing."""


def cache_key(fingerprint: str, content_hash: bytes) -> bytes:
    """Return the key of a vector: 16 bytes for the model, then the hash of the content."""
    return hashlib.blake2b(fingerprint.encode("utf-8", "surrogatepass"), digest_size=16).digest() + content_hash


def packed_vector(key: bytes, vector: Vector) -> bytes:
    """Return the float32 values, little-endian, and a checksum over them and their key."""
    data = np.ascontiguousarray(vector, dtype="<f4").tobytes()
    return data + _checksum(key, data)


def unpacked_vector(key: bytes, stored: object) -> Vector | None:
    """Return the vector of `packed_vector`; None where it is not what was stored under this key."""
    if not isinstance(stored, bytes):
        return None
    data, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
    if checksum != _checksum(key, data):
        return None
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def _checksum(key: bytes, vector: bytes) -> bytes:
    return hashlib.blake2b(vector, digest_size=_CHECKSUM_BYTES, key=key[:64]).digest()
