"""Connections to Weaviate as the settings say, and its client's failures in words. Called by the `weaviate` modules.

The client retries a gRPC call that found no server four times, for a minute, whatever its settings. Here calls wait for
the server instead (`waitForReady`), as long as their time limit lasts, and `may_pass` says what is tried again.
"""

import json
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vectorize_pipelines.core.urls import shown_url
from vectorize_pipelines.errors import StoreError, StoreUnavailableError, VectorizeError
from vectorize_pipelines.state.held_locks import check_run
from vectorize_pipelines.stores.failures import failure_text
from vectorize_pipelines.stores.servers import GRPC_OPTIONS, check_version, revealed, server_address

if TYPE_CHECKING:
    from weaviate import WeaviateClient
    from weaviate.config import GrpcConfig

    from vectorize_pipelines.settings import StoreSettings

DEFAULT_URL = "http://localhost:8080"
DEFAULT_GRPC_PORT = 50051
#: Aliases came with 1.32, the operator Not with 1.33.
OLDEST_SERVER = (1, 33)

#: Weaviate's cloud serves gRPC under a host name of its own, on the port of HTTPS.
_CLOUD_DOMAINS = (".weaviate.cloud", ".weaviate.network")

# What a server that is starting, stopping, out of reach or overloaded answers; the same call may succeed later.
_PASSING = ("unavailable", "failed to connect", "connection reset", "connection refused", "socket closed", "rst_stream",
            "server disconnected", "not ready", "non-existing index", "leader not found", "no leader",
            "could not find index for class",  # of a server that is starting: the schema is there before the index
            "shutting down", "shutdown", "too many", "code: 429", "code: 503", "code: 502", "code: 504",
            "not enough memory", "closed before", "goaway")  # fmt: skip

_ADVICE = (
    (("code: 401", "unauthenticated", "unauthorized", "anonymous access"),
     "the server refuses the key: set VECTORIZE_STORE__API_KEY to one that it knows"),
    (("code: 403", "permission_denied", "forbidden"), "the key may not do this: give its role the permission"),
    (("certificate", "ssl", "tls"),
     "the server's certificate is not trusted: name its authority in SSL_CERT_FILE and set "
     "VECTORIZE_STORE__WEAVIATE__TRUST_ENVIRONMENT=true, or correct the scheme of VECTORIZE_STORE__URL"),
    (("query_maximum_results",), "the server gives no more at once: raise its QUERY_MAXIMUM_RESULTS, or ask for less"),
    (("read-only", "read only", "readonly"), "the server takes no writes: its disk is probably full"),
    (("not enough memory",), "the server is out of memory: give it more, or quantize the collection"),
    (("deadline", "timed out", "timeout"),
     "it took too long: look whether the server runs, or raise VECTORIZE_STORE__WEAVIATE__QUERY_SECONDS or "
     "…__WRITE_SECONDS"),
    (("connect", "unavailable", "refused", "name or service", "grpc", "disconnected", "socket closed"),
     "the server cannot be reached: start it, or correct VECTORIZE_STORE__URL and VECTORIZE_STORE__GRPC_PORT"),
)  # fmt: skip


def connect(settings: "StoreSettings") -> "WeaviateClient":
    """Return a connected client of a server that is recent enough.

    Raises `SettingsError` for a URL that cannot be one of Weaviate's, and otherwise what the client raises.
    """
    with warnings.catch_warnings():  # importing it turns the warnings of all libraries on
        import weaviate
        from weaviate.classes.init import AdditionalConfig, Auth, Timeout

    _listen_to_client()

    url = server_address(settings.url or DEFAULT_URL, "a Weaviate server", "http://host:8080")
    key = revealed(settings.api_key, url)
    own, secure = settings.weaviate, url.scheme == "https"
    host = url.hostname or ""
    in_cloud = host.endswith(_CLOUD_DOMAINS)
    client = weaviate.connect_to_custom(
        http_host=host,
        http_port=url.port or (443 if secure else 80),
        http_secure=secure,
        grpc_host=own.grpc_host or (f"grpc-{host}" if in_cloud else host),
        grpc_port=settings.grpc_port or (443 if in_cloud else DEFAULT_GRPC_PORT),
        grpc_secure=secure,
        auth_credentials=None if key is None else Auth.api_key(key),
        additional_config=AdditionalConfig(
            timeout=Timeout(init=own.connect_seconds, query=own.query_seconds, insert=own.write_seconds),
            trust_env=own.trust_environment,
            grpc_config=_grpc_config(secure and own.trust_environment),
        ),
        # The checks ask the Python package index for the client's newest version too, which takes its time.
        skip_init_checks=True,
    )
    try:
        place = shown_url(settings.url or DEFAULT_URL)
        check_version("Weaviate", place, client.get_meta()["version"], OLDEST_SERVER)
    except BaseException:
        client.close()
        raise
    return client


class _RetryListener(logging.Handler):
    """A listener for requests that the client sends again by itself: it has no other way to tell than its log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise `LockLostError`, and the request is not sent again, where the run is another process's by now."""
        if record.funcName == "with_exponential_backoff":
            _resent.requests = requests_resent() + 1
            check_run()


_resent = threading.local()


def requests_resent() -> int:
    """Return how many requests the client has sent again, by itself, in this thread."""
    count: int = getattr(_resent, "requests", 0)
    return count


def _listen_to_client() -> None:
    """Listen only to the client's retries, and print nothing: it logs every refused object with its content."""
    client = logging.getLogger("weaviate-client")
    client.setLevel(logging.INFO)
    client.propagate = False
    client.handlers = [_RetryListener()]
    # httpx logs every request.
    if logging.getLogger("httpx").level == logging.NOTSET:
        logging.getLogger("httpx").setLevel(logging.WARNING)


def _grpc_config(certificates_of_environment: bool) -> "GrpcConfig":
    import grpc
    from weaviate.config import GrpcConfig

    service = {"methodConfig": [{"name": [{"service": "weaviate.v1.Weaviate"}], "waitForReady": True}]}
    options = [
        ("grpc.service_config", json.dumps(service)),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        *GRPC_OPTIONS,
    ]
    file = os.environ.get("SSL_CERT_FILE") if certificates_of_environment else None
    credentials = None if file is None else grpc.ssl_channel_credentials(Path(file).read_bytes())
    return GrpcConfig(channel_options=options, credentials=credentials)


def failures() -> tuple[type[Exception], ...]:
    """Return what Weaviate's client raises; anything else out of the store's modules is a defect of them."""
    import grpc
    import httpx
    from weaviate.exceptions import WeaviateBaseError

    return WeaviateBaseError, httpx.HTTPError, grpc.RpcError, OSError


def may_pass(error: BaseException) -> bool:
    """Return whether the same call may succeed soon."""
    import httpx
    from weaviate.exceptions import WeaviateConnectionError, WeaviateRetryError

    if _has_waited(error):
        return False
    if isinstance(error, httpx.TransportError | WeaviateConnectionError | WeaviateRetryError):
        return True
    return isinstance(error, failures()) and passing_reason(str(error))


def _has_waited(error: BaseException) -> bool:
    """Return whether a call waited for the server as long as it may."""
    import httpx
    from weaviate.exceptions import WeaviateTimeoutError

    return isinstance(error, httpx.TimeoutException | WeaviateTimeoutError)


def passing_reason(reason: str) -> bool:
    """Return whether this is the reason of a failure that may pass."""
    lowered = reason.lower()
    return any(sign in lowered for sign in _PASSING)


@contextmanager
def translate_errors(place: str, secret: str | None, doing: str, state: str = "") -> Iterator[None]:
    """Translate the client's failures to `StoreError`; what the project raised itself says enough already."""
    try:
        yield
    except VectorizeError:
        raise
    except failures() as error:
        reason = _reason(error)
        lowered = reason.lower()
        advice = next((text for signs, text in _ADVICE if any(sign in lowered for sign in signs)), "")
        unavailable = may_pass(error) or _has_waited(error) or "deadline" in lowered
        kind = StoreUnavailableError if unavailable else StoreError
        # Not `from error`: the client's errors carry the request, and the request the key.
        raise kind(failure_text(doing, place, state, advice, reason, secret)) from None


def _reason(error: BaseException) -> str:
    """Return what the error and those behind it say: of a connection the client's own often says nothing."""
    said: list[str] = []
    behind: BaseException | None = error
    while behind is not None:
        text = " ".join(str(behind).split())
        if text and not any(text in before for before in said):
            said.append(text)
        behind = behind.__cause__ or behind.__context__
    return ": ".join(said) or type(error).__name__
