"""Asking the provider of a key whether it takes it: a list of models costs nothing."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from vectorize_pipelines.core.extras import is_installed, needs
from vectorize_pipelines.core.urls import without_secrets
from vectorize_pipelines.errors import MissingExtraError
from vectorize_pipelines.providers.key_file import KeyEntry
from vectorize_pipelines.settings import ProvidersSettings

if TYPE_CHECKING:
    import openai

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
    places = asyncio.Semaphore(_TOGETHER)

    async def check(entry: KeyEntry) -> tuple[str, KeyCheck]:
        async with places:
            return entry.name, await _check(entry, settings)

    return dict(await asyncio.gather(*map(check, entries)))


async def _check(entry: KeyEntry, settings: ProvidersSettings) -> KeyCheck:
    import openai

    secret = entry.api_key.get_secret_value()
    try:
        url = settings.base_url_of(entry.provider)
    except KeyError:
        return KeyCheck("unknown", f"providers.base_urls has no address of the provider {entry.provider}")
    client = openai.AsyncOpenAI(api_key=secret, base_url=url, max_retries=0, timeout=TIMEOUT_SECONDS)
    async with client:
        try:
            await client.models.list()
        except openai.APIStatusError as error:
            said = without_secrets(_said(error), secret)
            return KeyCheck("refused" if error.status_code in (401, 403) else "unknown", said)
        except openai.OpenAIError as error:
            return KeyCheck("unknown", without_secrets(str(error), secret)[:_CHARACTERS])
    return KeyCheck("accepted")


def _said(error: "openai.APIStatusError") -> str:
    body = error.body if isinstance(error.body, dict) else {}
    message = str(body.get("message") or "")
    return f"{error.status_code} {' '.join(message.split())}".rstrip()[:_CHARACTERS]
