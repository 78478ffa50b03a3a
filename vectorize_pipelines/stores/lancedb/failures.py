"""LanceDB's failures in words that a user can act on. Called by the modules of `lancedb`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from vectorize_pipelines.core.urls import without_secrets
from vectorize_pipelines.errors import DamagedCollectionError, StoreError, StoreUnavailableError, VectorizeError
from vectorize_pipelines.stores.failures import failure_text
from vectorize_pipelines.stores.lancedb.durability import NOT_YET_DURABLE, UNCERTAIN
from vectorize_pipelines.stores.lancedb.location import Location

# What LanceDB's and Arrow's calls raise; anything else that comes out of this package is a defect of it.
_FAILURES = (OSError, RuntimeError, ValueError, pa.ArrowException)

_PLACE_IN_SOURCE = re.compile(r", /\S+\.rs:\d+:\d+")

# What object stores say to whom they do not let in.
_REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403 Forbidden", "401 Unauthorized")
_CREDENTIALS = "the object store refuses: check its credentials, and what they may do in the bucket"
# What an object store answers that fails itself: nothing is known of the object.
_FAILING = ("500 Internal Server Error", "502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout")
_PLAIN_HTTP = "the endpoint has no TLS: give one with https://, or the storage option allow_http: true"

_ADVICE = (
    (UNCERTAIN, "run again, which writes what is missing; check the disk and its free space"),
    ("No space left", "the disk is full: free some space"),
    ("os error 13", "permission is denied: check owner and mode of the directory"),
    ("Permission denied", "permission is denied: check owner and mode of the directory"),
    ("Read-only file system", "the file system is read-only"),
    ("has NaNs", "a vector contains NaN: check the model and its precision"),
    ("Commit conflict", "another process writes to the collection: call again"),
    ("Too many concurrent writers", "another process writes to the collection: call again"),
    ("commit conflict", "another process writes to the collection: call again"),
    ("BadScheme", _PLAIN_HTTP),
    ("NoSuchBucket", "there is no such bucket: make it, or correct store.url"),
    *((sign, _CREDENTIALS) for sign in _REFUSED),
    ("error sending request", "the object store is out of reach: check its endpoint and the network"),
    *((sign, "the object store fails or is overloaded: call again, and look at the server") for sign in _FAILING),
    ("LanceError(IO)", "a file is missing, damaged or out of reach: check the disk, else drop and ingest again"),
    ("Not found", "a file is missing: it was deleted, or removed as an old version during a very long read"),
    (NOT_YET_DURABLE, "another machine uses the directory: call again"),
)

# What LanceDB says where a file of a table is missing or damaged; there may be an earlier version that is whole.
_DAMAGE = ("LanceError(IO)", "Not found: ", "does not appear to be a Lance file")
_NO_DAMAGE = ("BadScheme", "NoSuchBucket", *_REFUSED)

# Messages about a directory on a full disk, and object storage that is out of reach or overloaded.
_PASSING = ("No space left", "ommit conflict", "Too many concurrent writers", "error sending request", "onnection re",
            "timed out", "SlowDown", *_FAILING, "Too Many Requests", NOT_YET_DURABLE)  # fmt: skip


@contextmanager
def translate_errors(location: Location, doing: str, state: str = "") -> Iterator[None]:
    """Raise LanceDB's failures as `StoreError`; what the project raised itself says enough already.

    `doing` says what fails, `state` what has become of the data.
    """
    try:
        yield
    except VectorizeError:
        raise
    except _FAILURES as error:
        reason = without_secrets(_reason(error), *location.secrets)
        advice = next((text for sign, text in _ADVICE if sign in reason), "")
        kind: type[StoreError] = DamagedCollectionError if _is_damage(reason) else StoreError
        if UNCERTAIN not in reason and any(sign in reason for sign in _PASSING):
            kind = StoreUnavailableError
        # Not `from error`: whoever prints the cause prints the location with all that it holds.
        raise kind(failure_text(doing, location.shown, state, advice, reason)) from None


def _is_damage(reason: str) -> bool:
    return any(sign in reason for sign in _DAMAGE) and not any(sign in reason for sign in _NO_DAMAGE)


def _reason(error: BaseException) -> str:
    """Return LanceDB's reason without the place in its source and the traceback of a callback, which it appends."""
    return _PLACE_IN_SOURCE.sub("", str(error).split("Detail: Python exception")[0]).strip()
