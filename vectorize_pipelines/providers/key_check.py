"""Asking the provider of a key whether it takes it: a list of models costs nothing."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vectorize_pipelines.core.extras import is_installed, needs
from vectorize_pipelines.core.urls import without_secrets
from vectorize_pipelines.errors import MissingExtraError
from vectorize_pipelines.providers.connections import Connections
from vectorize_pipelines.providers.key_file import KeyEntry
from vectorize_pipelines.settings import ProvidersSettings

Verdict: TypeAlias = Literal["accepted", "refused", "unknown"]

TIMEOUT_SECONDS = 15.0
_TOGETHER = 8
_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """What the provider of a key said: `unknown` where it did not answer, or answered nothing about the key."""

    verdict: Verdict
    detail: str = ""


async def check_keys(entries: Iterable[KeyEntry], settings: ProvidersSettings) -> Mapping[str, KeyCheck]:
    """Ask about keys, some side by side; return the answers by name. Changes nothing. Raises `MissingExtraError`."""
    if not is_installed("providers"):
        raise MissingExtraError(needs("checking API keys", "providers"))
    connections = Connections(settings, TIMEOUT_SECONDS)
    places = asyncio.Semaphore(_TOGETHER)

    async def check(entry: KeyEntry) -> tuple[str, KeyCheck]:
        async with places:
            return entry.name, await _check(entry, connections)

    try:
        return dict(await asyncio.gather(*map(check, entries)))
    finally:
        await connections.close()


async def _check(entry: KeyEntry, connections: Connections) -> KeyCheck:
    import openai

    try:
        client = connections.client(entry.provider, entry.api_key)
    except KeyError:
        return KeyCheck("unknown", f"providers.base_urls has no address of the provider {entry.provider}")
    try:
        await client.models.list()
    except openai.APIStatusError as error:
        verdict: Verdict = "refused" if error.status_code in (401, 403) else "unknown"
        body = error.body if isinstance(error.body, dict) else {}
        return KeyCheck(verdict, _shown(f"{error.status_code} {body.get('message') or ''}", entry))
    except openai.OpenAIError as error:
        return KeyCheck("unknown", _shown(str(error), entry))
    return KeyCheck("accepted")


def _shown(text: str, entry: KeyEntry) -> str:
    """Return what a provider said without the key, of which a part would be left if the text were cut before."""
    return without_secrets(" ".join(text.split()), entry.api_key.get_secret_value())[:_CHARACTERS]
