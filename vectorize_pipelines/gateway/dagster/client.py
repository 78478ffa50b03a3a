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
    import httpx2

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

    def client(self, **options: Any) -> "httpx2.AsyncClient":
        """Return a client whose relative addresses are those of the server."""
        import httpx2

        limits = httpx2.Limits(max_connections=_CONNECTIONS, keepalive_expiry=_IDLE_SECONDS)
        socket = None if self.socket is None else str(self.socket)
        transport = httpx2.AsyncHTTPTransport(uds=socket, trust_env=False, limits=limits)
        return httpx2.AsyncClient(base_url=self.url, transport=transport, trust_env=False, **options)


class DagsterClient:
    """GraphQL calls. An async context manager."""

    def __init__(self, address: DagsterAddress, seconds: float = 10.0) -> None:
        self._client = address.client(timeout=seconds)

    async def query(self, document: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the `data` of a query or a mutation. Raises `DagsterUnavailableError`."""
        import httpx2

        content = {"query": document, "variables": dict(variables or {})}
        try:
            answer = await self._client.post(f"{PATH_PREFIX}/graphql", json=content)
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
        except (httpx2.HTTPError, ValueError) as error:
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
        await self._client.aclose()
