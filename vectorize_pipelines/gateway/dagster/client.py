"""Asks Dagster's web server by GraphQL: launches runs, ends them, and learns what became of them.

Called by the routes of tasks and of health. The server listens at a Unix socket of ours or at an operator's address.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vectorize_pipelines.errors import DagsterUnavailableError
from vectorize_pipelines.gateway.paths import PATH_PREFIX

if TYPE_CHECKING:
    import aiohttp

#: Shorter than servers keep idle connections (uvicorn: 5 s), so that none is used that is just being closed.
_IDLE_SECONDS = 2.0
_CONNECTIONS = 100


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
        return aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )


class DagsterClient:
    """GraphQL calls. An async context manager, made on the event loop."""

    def __init__(self, address: DagsterAddress, seconds: float = 10.0) -> None:
        import aiohttp

        self._graphql = f"{address.url}{PATH_PREFIX}/graphql"
        self._session = address.session(aiohttp.ClientTimeout(total=seconds))

    async def query(self, document: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the `data` of a query or a mutation. Raises `DagsterUnavailableError`."""
        import aiohttp

        content = {"query": document, "variables": dict(variables or {})}
        headers = {"Accept-Encoding": "identity"}
        try:
            async with self._session.post(self._graphql, json=content, headers=headers) as answer:
                answer.raise_for_status()
                found: dict[str, Any] = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise DagsterUnavailableError(f"Dagster's web server does not answer: {type(error).__name__}") from error
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
