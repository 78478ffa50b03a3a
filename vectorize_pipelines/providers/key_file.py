"""The file of API keys (`config/api_keys.yaml`): what it may hold, and reading it again when it changes."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from vectorize_pipelines.core.yaml_files import fill_references, read_yaml, shown_name
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.settings import DEFAULT_PROVIDER

logger = logging.getLogger(__name__)

#: So often the file is looked at, while keys are asked for.
LOOK_SECONDS = 0.5

Limit = Annotated[int, Field(ge=1)]


class KeyEntry(BaseModel):
    """One key and its limits; a limit that is None does not exist."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_key: SecretStr
    name: str = Field("", max_length=200)
    provider: str = Field(DEFAULT_PROVIDER, min_length=1)
    models: tuple[str, ...] = ()
    #: With the strategy `priority`, the highest goes first.
    priority: int = 0
    qps_limit: Limit | None = None
    rpm_limit: Limit | None = None
    tpm_limit: Limit | None = None
    max_concurrency: Limit | None = None
    enabled: bool = True

    @field_validator("api_key")
    @classmethod
    def _can_be_sent(cls, key: SecretStr) -> SecretStr:
        value = key.get_secret_value()
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError("is empty, or has characters that no header can carry")
        return key


class KeyConfig(BaseModel):
    """The whole file: the keys, and how one of them is chosen. Times are in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Literal["round_robin", "least_loaded", "priority"] = "round_robin"
    max_retry_per_key: int = Field(3, ge=1)
    default_cooldown: float = Field(60.0, gt=0, allow_inf_nan=False)
    max_cooldown: float = Field(3600.0, gt=0, allow_inf_nan=False)
    keys: tuple[KeyEntry, ...] = ()

    @model_validator(mode="after")
    def _names_tell_keys_apart(self) -> Self:
        named: dict[str, str] = {}
        for entry in self.keys:
            if entry.name in named.values():
                raise ValueError(f"two keys have the name {entry.name}")
            other = named.setdefault(entry.api_key.get_secret_value(), entry.name)
            if other != entry.name:
                raise ValueError(f"{other} and {entry.name} are the same key")
        return self


class KeySource:
    """The keys of a file, which is read again when it changes, or of a mapping, which does not change."""

    def __init__(self, config: Mapping[str, Any] | Path):
        """Read the keys. Raises `SettingsError` where they cannot be used; a file that is absent holds none."""
        self._file = config if isinstance(config, Path) else None
        self._seen = self._signature()
        self._is_gone = False
        self._looked = time.monotonic()
        self._config = self._read() if self._file is not None else parse_keys("the configuration of keys", config)

    @property
    def place(self) -> str:
        """Where the keys stand, for messages."""
        return "the configuration of keys" if self._file is None else str(self._file)

    def current(self) -> KeyConfig:
        """Return what the file holds now: the same object until it changes.

        A file that has become wrong is logged, and the keys that were known before remain. Where it holds none any
        more, they remain until a second look: an editor empties or removes it for a moment.
        """
        now = time.monotonic()
        if self._file is None or now - self._looked < LOOK_SECONDS:
            return self._config
        self._looked = now
        signature = self._signature()
        if signature != self._seen:
            self._seen = signature
            try:
                found = self._read()
            except SettingsError as error:
                logger.error("the API keys remain as they were: %s", error)  # noqa: TRY400 (no defect of ours)
                self._is_gone = False
                return self._config
            if self._config.keys and not found.keys and not self._is_gone:
                self._seen, self._is_gone = (), True
            else:
                self._config, self._is_gone = found, False
        return self._config

    def _signature(self) -> tuple[int, ...] | None:
        if self._file is None:
            return None
        try:
            status = self._file.stat()
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_size, status.st_ino)

    def _read(self) -> KeyConfig:
        assert self._file is not None, "a mapping is never read again"
        return read_keys(self._file)


def read_keys(file: Path) -> KeyConfig:
    """Return the keys in a file, none where it is absent. Raises `SettingsError`, which shows nothing of a key."""
    return parse_keys(str(file), read_yaml(file) if file.exists() else None)


def parse_keys(place: str, tree: Any) -> KeyConfig:
    """Return the keys in a tree of values, with the environment's values for `${NAME}`. Raises `SettingsError`."""
    tree = {} if tree is None else tree
    if not isinstance(tree, Mapping) or not isinstance(tree.get("keys") or [], list | tuple):
        raise SettingsError(f"{place} must hold `keys:` with a list of keys, each with `api_key:` and `name:`")
    tree = {**tree, "keys": [_named(entry, number) for number, entry in enumerate(tree.get("keys") or [], 1)]}
    try:
        return KeyConfig.model_validate(fill_references(tree, os.environ, set()))
    except KeyError as error:
        raise SettingsError(
            f"{place} refers to ${{{error.args[0]}}}, and the environment has no such variable"
        ) from None
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        lines = [f"{'.'.join(shown_name(str(part)) for part in each['loc'])}: {each['msg']}" for each in problems]
        raise SettingsError(f"{place} is wrong:\n  " + "\n  ".join(lines)) from None


def _named(entry: Any, number: int) -> Any:
    """Return an entry with a name: what is no mapping is refused later, with its place."""
    return {**entry, "name": entry.get("name") or f"key-{number}"} if isinstance(entry, Mapping) else entry
