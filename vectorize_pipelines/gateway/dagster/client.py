"""Asks Dagster's web server by GraphQL: launches runs, ends them, and learns what became of them.

Called by the routes of tasks and of health. The server listens at a Unix socket of ours or at an operator's address.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from yarl import URL

from vectorize_pipelines.errors import DagsterUnavailableError
from vectorize_pipelines.gateway.paths import PATH_PREFIX

if TYPE_CHECKING:
    import aiohttp

#: Shorter than servers keep idle connections (uvicorn: 5 s), so that none is used that is just being closed.
_IDLE_SECONDS = 2.0
_CONNECTIONS = 100
#: The longest address that is asked for, as long as servers read; an answer may lead to one as long.
ADDRESS_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class DagsterAddress:
    """Where Dagster's web server is.

    url     its address, without `PATH_PREFIX`: http://localhost where there is a socket
    socket  the Unix socket that it listens at; None: it is reached by the address
    """

    url: str
    socket: Path | None = None

    def session(self, timeout: "aiohttp.ClientTimeout") -> "aiohttp.ClientSession":
        """Return a client of the server. Called on the event loop that it is used on."""
        import aiohttp

        options: dict[str, Any] = {"limit": _CONNECTIONS, "keepalive_timeout": _IDLE_SECONDS}
        if self.socket is None:
            connector: aiohttp.BaseConnector = aiohttp.TCPConnector(**options)
        else:
            connector = aiohttp.UnixConnector(str(self.socket), **options)
        user, password = URL(self.url).user, URL(self.url).password
        return aiohttp.ClientSession(
            connector=connector,
            headers=None if user is None else {"Authorization": aiohttp.encode_basic_auth(user, password or "")},
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=ADDRESS_BYTES,
            max_field_size=ADDRESS_BYTES,
        )


class DagsterClient:
    """GraphQL calls. An async context manager, made on the event loop."""

    def __init__(self, address: DagsterAddress, seconds: float = 10.0) -> None:
        import aiohttp

        self._graphql = URL(address.url).origin().with_path(f"{PATH_PREFIX}/graphql")
        # Who is not reached within half of the time has certainly not received anything.
        self._session = address.session(aiohttp.ClientTimeout(total=seconds, sock_connect=seconds / 2))

    async def query(self, document: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the `data` of a query or a mutation. Raises `DagsterUnavailableError`."""
        import aiohttp

        content = {"query": document, "variables": dict(variables or {})}
        options: dict[str, Any] = {"headers": {"Accept-Encoding": "identity"}, "allow_redirects": False}
        try:
            async with self._session.post(self._graphql, json=content, **options) as answer:
                answer.raise_for_status()
                found = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise DagsterUnavailableError(f"Dagster's web server does not answer: {type(error).__name__}") from error
        if not isinstance(found, dict):
            raise DagsterUnavailableError("Dagster's web server does not answer: what does is another one")
        if found.get("errors"):
            raise DagsterUnavailableError(f"Dagster's web server failed: {found['errors'][0].get('message')}")
        data: dict[str, Any] = found["data"]
        return data

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
