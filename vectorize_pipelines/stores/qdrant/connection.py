"""Connections to Qdrant, a server or the client's local mode: retries, and failures that say what to do.

Called by `store`. A call of a server that is away or overloaded is repeated after a pause that doubles, since every
call that this project makes has the same effect twice. Local mode keeps a folder of SQLite files and everything in
memory; it locks the folder to one process, in which the stores on one folder share one client, one call at a time.
"""

import atexit
import math
import sqlite3
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vectorize_pipelines.core.urls import shown_url
from vectorize_pipelines.errors import (
    CollectionNotFoundError,
    SettingsError,
    StoreError,
    StoreUnavailableError,
    VectorizeError,
)
from vectorize_pipelines.state.held_locks import check_run
from vectorize_pipelines.stores.failures import failure_text
from vectorize_pipelines.stores.servers import (
    GRPC_OPTIONS,
    check_version,
    pauses,
    retry,
    revealed,
    server_address,
)

if TYPE_CHECKING:
    from vectorize_pipelines.settings import QdrantSettings, StoreSettings

#: The first server with matches of prefixes, which filters need.
OLDEST_SERVER = (1, 19)
_GRPC_PORT = 6334

# gRPC's codes of what may pass: the server is away, starting, out of time or overloaded; a shard changes its leader.
_PASSING = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED")

_ADVICE = {
    "UNAVAILABLE": "the server cannot be reached: start it, or correct store.url and store.grpc_port",
    "UNAUTHENTICATED": "the server refuses the key: set VECTORIZE_STORE__API_KEY to one that it knows",
    "PERMISSION_DENIED": "the key does not allow it: set VECTORIZE_STORE__API_KEY to one that may write",
    "DEADLINE_EXCEEDED": "the server did not answer in time: look at its load, or raise store.qdrant.timeout_seconds",
    "RESOURCE_EXHAUSTED": "the server is out of memory, disk or its rate limit: look at its log",
}

# What the client and SQLite raise in local mode; anything else that comes out of it is a defect.
_LOCAL_FAILURES = (OSError, ValueError, RuntimeError, EOFError, sqlite3.Error)


class Connection:
    """A client and the place that it is connected to.

    local      whether it is the client's local mode
    location   the place as users may see it, without credentials
    """

    def __init__(self, settings: "StoreSettings", home: Path):
        """Raise `SettingsError` for a URL that is not for Qdrant or a certificate that cannot be read."""
        self._settings: QdrantSettings = settings.qdrant
        self._pauses = pauses(self._settings.retries, self._settings.retry_seconds)
        self._secret: str | None = None
        location = settings.url or str(home / "qdrant")
        parts = urlsplit(location)
        scheme = parts.scheme if "://" in location else ""
        self.local = scheme in ("", "file")
        if self.local:
            path = Path(url2pathname(parts.path)) if scheme else Path(location)
            self._folder = path.expanduser().absolute()
            self.location = str(self._folder)
        else:
            address = server_address(location, "a Qdrant server", "http://host:6333")
            self._secret = revealed(settings.api_key, address)
            self.location = shown_url(location)
            self._grpc_port = settings.grpc_port or _GRPC_PORT
        with self.translate_errors("opening"):
            self.client: Any = _LOCAL_CLIENTS.take(self._folder) if self.local else self._connected()
        if self.local:  # with the store, which a run does not close, or the folder would stay locked after it
            self._release = weakref.finalize(self, _LOCAL_CLIENTS.give_back, self._folder)
            self._release.atexit = False  # `_close_all` does

    def call(self, method: str, **arguments: Any) -> Any:
        """Call the client's method. Raises what it raises once retries are used up, for `translate_errors`."""
        function = partial(getattr(self.client, method), **arguments)
        if self.local:
            with _LOCAL_CLIENTS.lock:
                return function()
        return self._repeated(function)

    def change(self, method: str, **arguments: Any) -> Any:
        """Call what changes rows. Raises `LockLostError` where the run is another process's by now: nothing is sent."""
        if self.local:
            return self.call(method, **arguments)
        return self._repeated_while_own(partial(getattr(self.client, method), **arguments))

    def upsert(self, collection: str, points: Sequence[Any]) -> str:
        """Write points and wait until they are applied; return the server's word for how far it got: `completed`.

        `points` are `models.PointStruct` in local mode and `grpc.PointStruct` for a server, whose messages take a
        vector's bytes as they are; the client's own method would take its components one by one.
        """
        if self.local:
            status = self.call("upsert", collection_name=collection, points=points, wait=True).status
            return str(status.value)
        from qdrant_client import grpc

        request = grpc.UpsertPoints(collection_name=collection, points=points, wait=True)
        send = self.client.grpc_points.Upsert
        answer = self._repeated_while_own(partial(send, request, timeout=self._settings.timeout_seconds))
        return str(grpc.UpdateStatus.Name(answer.result.status)).lower()

    def _repeated(self, function: Callable[[], Any]) -> Any:
        return retry(function, self._pauses, may_pass)

    def _repeated_while_own(self, function: Callable[[], Any]) -> Any:
        """Look before each try whether the run is still this process's: a late one would undo its successor's work."""

        def checked() -> Any:
            check_run()
            return function()

        return self._repeated(checked)

    def close(self) -> None:
        """End the connection; a folder is released with the last store on it."""
        if self.local:
            self._release()
        else:
            self.client.close()

    @contextmanager
    def translate_errors(self, doing: str, state: str | Callable[[], str] = "") -> Iterator[None]:
        """Translate the client's failures; what the project raised itself says enough already.

        `state` says what has become of the data, at the time of the failure where it is a function.
        """
        try:
            yield
        except VectorizeError:
            raise
        except Exception as error:
            code = _code(error)
            if code is None and not (self.local and isinstance(error, _LOCAL_FAILURES)):
                raise
            raise self._failure(error, code, doing, state() if callable(state) else state) from None

    def _failure(self, error: BaseException, code: str | None, doing: str, state: str) -> StoreError:
        """Return the error, not caused by the client's own, which may show the request's headers, and so the key."""
        where = self.location if self.local else f"{self.location} (gRPC port {self._grpc_port})"
        advice = _ADVICE.get(code or "", "")
        kind = StoreUnavailableError if code in _PASSING else StoreError
        if is_not_found(error):
            kind = CollectionNotFoundError
        return kind(failure_text(doing, where, state, advice, _reason(error), self._secret))

    def _connected(self) -> Any:
        from qdrant_client import QdrantClient

        options: dict[str, Any] = dict(GRPC_OPTIONS)
        if self._settings.ca_certificate is not None:
            try:
                options["root_certificates"] = self._settings.ca_certificate.read_bytes()
            except OSError as error:
                raise SettingsError(
                    f"store.qdrant.ca_certificate: {self._settings.ca_certificate} cannot be read: {error.strerror}"
                ) from error
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
            self.client = QdrantClient(
                url=self.location,
                grpc_port=self._grpc_port,
                prefer_grpc=True,
                api_key=self._secret,
                timeout=math.ceil(self._settings.timeout_seconds),
                grpc_options=options,
                check_compatibility=False,  # asks through REST, in a thread: `check_version` does it through gRPC
            )
        try:
            check_version("Qdrant", self.location, self.call("info").version, OLDEST_SERVER)
            self.call("get_collections")  # unlike the version it needs the key
        except BaseException:
            self.client.close()
            raise
        return self.client


def is_not_found(error: BaseException) -> bool:
    """Return whether there is no collection or alias of the name that a call was for."""
    text = _reason(error)
    return _code(error) == "NOT_FOUND" or (isinstance(error, ValueError) and text.endswith(" not found"))


def is_there_already(error: BaseException) -> bool:
    """Return whether what was to be created had been created by another in between."""
    return _code(error) in ("ALREADY_EXISTS", "INVALID_ARGUMENT") and "already exists" in _reason(error)


def may_pass(error: BaseException) -> bool:
    """Return whether a failure may be gone when the call is tried again."""
    return _code(error) in _PASSING


def _code(error: BaseException) -> str | None:
    """Return the name of the gRPC status that the error stands for; None where it stands for none."""
    import grpc
    from qdrant_client.common.client_exceptions import ResourceExhaustedResponse

    if isinstance(error, ResourceExhaustedResponse):
        return "RESOURCE_EXHAUSTED"
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return str(error.code().name)
    return None


def _reason(error: BaseException) -> str:
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error).strip()


class _LocalClients:
    """The clients of the folders that this process has open, and how many stores use each."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._open: dict[Path, tuple[Any, int]] = {}
        atexit.register(self._close_all)  # the client cannot close itself once the interpreter shuts down

    def take(self, folder: Path) -> Any:
        """Return the folder's client, opened by the first that takes it."""
        with self.lock:
            client, users = self._open.get(folder) or (_open_folder(folder), 0)
            self._open[folder] = client, users + 1
            return client

    def give_back(self, folder: Path) -> None:
        """Release a folder's client, once for each `take`; the last one closes it."""
        with self.lock:
            client, users = self._open.pop(folder)
            if users > 1:
                self._open[folder] = client, users - 1
            else:
                client.close()

    def _close_all(self) -> None:
        for client, _ in self._open.values():
            client.close()


def _open_folder(folder: Path) -> Any:
    from qdrant_client import QdrantClient

    try:
        return QdrantClient(path=str(folder), force_disable_check_same_thread=True)
    except RuntimeError as error:
        if "already accessed" not in str(error):
            raise
        raise StoreError(
            f"another process has {folder} open, and Qdrant's local mode is for one process at a time: wait for it to "
            "end, or start a Qdrant server and set store.url to its address"
        ) from None


_LOCAL_CLIENTS = _LocalClients()
