"""The keys of a file as the shared state knows them: which of them serve a call, and what is shown of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vectorize_pipelines.errors import NoKeyAvailableError, NoSuitableKeyError, UnknownKeyError
from vectorize_pipelines.providers.key_file import KeyConfig, KeyEntry
from vectorize_pipelines.providers.keys import APIKeyInfo, KeyState
from vectorize_pipelines.providers.limits import KeyLimits, KeyUse, Lease, Strategy, Windows
from vectorize_pipelines.providers.limits.base import ProviderUse

_ID_BYTES = 16
#: As many choices of keys, by what calls want, are kept.
_SETS = 100


@dataclass(frozen=True, slots=True)
class Wanted:
    """The keys that serve calls of a provider and a model: the same object for every such call."""

    what: str
    names: Sequence[str]
    limits: Sequence[KeyLimits]


class KeySet:
    """The keys of one version of the file, by ids made with one salt."""

    def __init__(self, config: KeyConfig, salt: bytes, windows: Windows):
        self.config = config
        self._entries = {_id(salt, entry): entry for entry in config.keys}
        self._limits = {id_: _limits(id_, entry, windows) for id_, entry in self._entries.items()}
        self.limits = list(self._limits.values())
        self._wanted: dict[tuple[str | None, str | None, frozenset[str]], Wanted] = {}

    @property
    def strategy(self) -> Strategy:
        """How a key is chosen."""
        return self.config.strategy

    @property
    def providers(self) -> list[str]:
        """The providers of the keys."""
        return sorted({entry.provider for entry in self._entries.values()})

    def by_file(self, *, enabled: bool) -> list[str]:
        """Return the ids of the keys that the file enables, or disables."""
        return [id_ for id_, entry in self._entries.items() if entry.enabled == enabled]

    def id_of(self, name: str, place: str) -> str:
        """Return the id of a key. Raises `UnknownKeyError` where `place`, the file, has none of this name."""
        for id_, entry in self._entries.items():
            if entry.name == name:
                return id_
        known = ", ".join(sorted(entry.name for entry in self._entries.values())) or "none"
        raise UnknownKeyError(f"{place} has no API key with the name {name}; it has: {known}")

    def entry(self, id_: str) -> KeyEntry:
        """Return what the file says of a key."""
        return self._entries[id_]

    def limits_of(self, id_: str) -> KeyLimits:
        """Return the limits of a key."""
        return self._limits[id_]

    def wanted(
        self, provider: str | None, model: str | None, exclude: frozenset[str], tokens: int, place: str
    ) -> Wanted:
        """Return the keys that can serve a call, but for those that the file disables, and those named in `exclude`.

        Raises `NoSuitableKeyError` where there is none, `NoKeyAvailableError` where those that are left are none.
        """
        wanted = self._wanted.get((provider, model, exclude))
        if wanted is None:
            what = " ".join(
                (
                    *(() if provider is None else (f"of the provider {provider}",)),
                    *(() if model is None else (f"for the model {model}",)),
                )
            )
            serving = {id_: entry for id_, entry in self._entries.items() if _serves(entry, provider, model)}
            if not serving:
                none = f"{place} has no API key {what}".rstrip()
                raise NoSuitableKeyError(f"{none}: add one there, and let its `models` name the model, or be empty")
            serving = {id_: entry for id_, entry in serving.items() if entry.name not in exclude}
            if not serving:
                others = ", ".join(sorted(exclude))
                raise NoKeyAvailableError(f"{place} has no API key {what}".rstrip() + f" but {others}")
            if len(self._wanted) >= _SETS:
                self._wanted.clear()
            names = [entry.name for entry in serving.values()]
            limits = [self._limits[id_] for id_, entry in serving.items() if entry.enabled]
            wanted = self._wanted[(provider, model, exclude)] = Wanted(what, names, limits)
        if not wanted.limits:
            raise NoKeyAvailableError(self.all_disabled(wanted, place))
        largest = max((each.tpm or tokens for each in wanted.limits), default=0)
        if tokens > largest:
            message = (
                f"a call of {tokens} tokens is more than any API key {wanted.what} may take in a minute ({largest}): "
                f"see `tpm_limit` in {place}, and providers.max_answer_tokens"
            )
            raise NoKeyAvailableError(message) if exclude else NoSuitableKeyError(message, most_tokens=largest)
        return wanted

    def all_disabled(self, wanted: Wanted, place: str) -> str:
        """Return the message for a call whose keys are all disabled."""
        what = f" {wanted.what}" if wanted.what else ""
        return f"every API key{what} is disabled ({', '.join(wanted.names)}): see `vectorize keys list`, and {place}"

    def lent(self, id_: str, lease: str, tokens: int) -> APIKeyInfo:
        """Return a key as its borrower gets it."""
        entry = self._entries[id_]
        return APIKeyInfo(
            name=entry.name,
            api_key=entry.api_key,
            provider=entry.provider,
            models=entry.models,
            priority=entry.priority,
            qps_limit=entry.qps_limit,
            rpm_limit=entry.rpm_limit,
            tpm_limit=entry.tpm_limit,
            max_concurrency=entry.max_concurrency,
            lease=f"{id_}/{lease}/{tokens}",
        )

    def health(self, used: Mapping[str, KeyUse], failures: Mapping[str, ProviderUse]) -> dict[str, dict[str, Any]]:
        """Return what is shown of every key, by name."""
        return {entry.name: _shown(entry, used[id_], failures[entry.provider]) for id_, entry in self._entries.items()}


def lease_of(key: APIKeyInfo) -> Lease:
    """Return the loan that a key was lent by."""
    id_, lease, tokens = key.lease.split("/")
    return Lease(lease, id_, int(tokens))


def _id(salt: bytes, entry: KeyEntry) -> str:
    secret = entry.api_key.get_secret_value().encode()
    return hashlib.blake2b(secret, key=salt, digest_size=_ID_BYTES).hexdigest()


def _limits(id_: str, entry: KeyEntry, windows: Windows) -> KeyLimits:
    return KeyLimits(
        id_,
        entry.priority,
        entry.qps_limit,
        entry.rpm_limit,
        entry.tpm_limit,
        entry.max_concurrency,
        windows.second_for(entry.qps_limit, entry.rpm_limit),
    )


def _serves(entry: KeyEntry, provider: str | None, model: str | None) -> bool:
    return (provider is None or entry.provider == provider) and (
        model is None or not entry.models or model in entry.models
    )


def _shown(entry: KeyEntry, use: KeyUse, provider: ProviderUse) -> dict[str, Any]:
    return {
        "state": _state(use).value,
        "provider": entry.provider,
        "models": list(entry.models),
        "priority": entry.priority,
        "in_use": use.in_use,
        "max_concurrency": entry.max_concurrency,
        "requests_last_second": use.requests_second,
        "qps_limit": entry.qps_limit,
        "requests_last_minute": use.requests_minute,
        "rpm_limit": entry.rpm_limit,
        "tokens_last_minute": use.tokens_minute,
        "tpm_limit": entry.tpm_limit,
        "next_available_seconds": use.next_available,
        "cooling_seconds": use.cooling,
        "disabled_reason": use.disabled,
        "calls": use.calls,
        "failures": use.failures,
        "rate_limited": use.rate_limited,
        "provider_failures": provider.failures,
        "provider_failures_in_a_row": provider.in_a_row,
        "provider_latest_failure": provider.latest or None,
    }


def _state(use: KeyUse) -> KeyState:
    if use.disabled is not None:
        return KeyState.DISABLED
    if use.cooling > 0:
        return KeyState.COOLING
    return KeyState.IN_USE if use.in_use or use.next_available else KeyState.AVAILABLE
