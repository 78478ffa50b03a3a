"""Clients of `openai`, one for each provider and key, over one pool of connections."""

import logging
from typing import TYPE_CHECKING

from pydantic import SecretStr

from vectorize_pipelines.core.extras import missing
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.settings.providers import DEFAULT_PROVIDER, ProvidersSettings

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

#: Named, since the client would else look for another one in the environment.
OPENAI_URL = "https://api.openai.com/v1"
#: Keys come and go in their file; clients of former ones are dropped beyond so many.
MOST_CLIENTS = 1000


class Connections:
    """What `openai` needs to send requests. It repeats none of them: `calls` does. Used by one event loop."""

    def __init__(self, settings: ProvidersSettings, timeout_seconds: float | None = None):
        """Import what sending takes, and connect to nothing yet. Raises `SettingsError` without `openai`.

        `timeout_seconds`: of a request; None: what the settings have for one attempt of a call.
        """
        lacking = missing("a remote model", "providers")
        if lacking is not None:
            raise SettingsError(lacking)
        self._settings = settings
        self._http = _http_client(settings, timeout_seconds or settings.call_seconds)
        self._clients: dict[tuple[str, str], AsyncOpenAI] = {}
        # A second or more, which a key that is lent must not wait for: its requests are counted by their time.
        prepared = self._connected(DEFAULT_PROVIDER, "no key")
        _ = prepared.chat.completions, prepared.embeddings, prepared.platform_headers()

    def client(self, provider: str, key: SecretStr) -> "AsyncOpenAI":
        """Return the client that sends requests to a provider with a key."""
        secret = key.get_secret_value()
        found = self._clients.get((provider, secret))
        if found is None:
            if len(self._clients) >= MOST_CLIENTS:
                self._clients.clear()
            found = self._clients[provider, secret] = self._connected(provider, secret)
        return found

    async def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._clients.clear()
        await self._http.aclose()

    def _connected(self, provider: str, secret: str) -> "AsyncOpenAI":
        from openai import AsyncOpenAI

        client = AsyncOpenAI(
            api_key=secret,
            base_url=self._settings.base_url_of(provider) or OPENAI_URL,
            max_retries=0,
            http_client=self._http,
        )
        # None given to it would be looked up in the environment (OPENAI_ORG_ID, OPENAI_PROJECT_ID).
        client.organization = client.project = None
        return client


def _http_client(settings: ProvidersSettings, timeout_seconds: float) -> "httpx2.AsyncClient":
    import httpx2
    from openai import DefaultAioHttpClient

    # It logs every request.
    if logging.getLogger("httpx2").level == logging.NOTSET:
        logging.getLogger("httpx2").setLevel(logging.WARNING)
    most = settings.max_concurrency
    # Over aiohttp: httpcore looks through all its connections for each request. A redirect would carry the key.
    return DefaultAioHttpClient(
        follow_redirects=False,
        timeout=timeout_seconds,
        limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
    )
