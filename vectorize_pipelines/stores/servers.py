"""Address and key of stores that are servers, and calls that are tried again.

Called by the modules of `qdrant` and `weaviate`.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from vectorize_pipelines.core import retrying
from vectorize_pipelines.errors import SettingsError, StoreError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

#: The system gives up a connection, and what it still has to send over it, once the server has confirmed nothing for so
#: long: less than a lease lasts (`state.leases`), so that no write of a machine that was cut off arrives after its run
#: was taken over. gRPC tells the system so only where it also pings the server, which once an hour disturbs none.
GRPC_OPTIONS = (("grpc.keepalive_time_ms", 3_600_000), ("grpc.keepalive_timeout_ms", 10_000))
_LONGEST_PAUSE = 30.0
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def server_address(url: str, store: str, example: str) -> SplitResult:
    """Return the parts of `store.url`; raises `SettingsError`, without showing it, for what is no server's address."""
    try:
        parts = urlsplit(url)
        complete = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        complete = False
    if not complete or parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise SettingsError(
            f"store.url: the address of {store} has the form {example} or https://…, without a path; "
            "the key is given as store.api_key, the gRPC port as store.grpc_port"
        )
    return parts


def revealed(key: SecretStr | None, address: SplitResult) -> str | None:
    """Return the key as the client takes it; warns where it would cross a network unencrypted."""
    if key is None:
        return None
    if address.scheme == "http" and address.hostname not in _THIS_MACHINE:
        logger.warning("the key goes to http://%s unencrypted; give the server TLS and use https://", address.netloc)
    return key.get_secret_value()


def check_version(product: str, place: str, version: str, oldest: tuple[int, int]) -> None:
    """Raise `StoreError` for a server that is older than this. What follows the second number does not count."""
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < oldest:
        least = ".".join(map(str, oldest))
        raise StoreError(f"the server in {place} is {product} {version}; {least} or later is needed: update it")


def pauses(retries: int, first: float) -> Sequence[float]:
    """Return the pauses before each further attempt, in seconds: each twice as long as the one before, none over 30."""
    return list(islice(retrying.growing_pauses(first, _LONGEST_PAUSE), retries))


def retry(call: Callable[[], Result], pauses: Sequence[float], may_pass: Callable[[Exception], bool]) -> Result:
    """Return the result of `call`, tried again after each of the pauses (seconds) while its failure may pass.

    A failure that says itself when to come back (`retry_after_s`, as Qdrant's client does) is taken at its word.
    """
    return retrying.retry(call, pauses, may_pass, asked=_pause_asked_for, before_pause=_warn)


def _pause_asked_for(failure: Exception) -> float | None:
    asked: float | None = getattr(failure, "retry_after_s", None)
    return asked


def _warn(failure: Exception, pause: float) -> None:
    logger.warning("the vector store is away or overloaded; trying again in %g s", pause)
