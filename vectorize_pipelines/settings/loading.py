"""The one typed settings object, and where its values come from, strongest first:

1. what the caller of `load_settings` gives
2. environment variables, prefix `VECTORIZE_`, `__` between levels: `VECTORIZE_STORE__KIND=lancedb`
3. the same names in `.env`
4. the same tree, lower case, in `vectorize.yaml`
5. the defaults in the sections

Both files are looked for in the working directory. The names that users of the earlier master and worker
services have in their environments are read as aliases (`LEGACY_NAMES`).

pydantic-settings lays the sources over each other. None of them is its own: those pass over variables that are no
settings, cannot tell which variable or file a wrong value came from, and show the lines of files that cannot be read.
"""

import difflib
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dotenv import dotenv_values
from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from vectorize_pipelines.core.installation import project_folder
from vectorize_pipelines.core.yaml_files import read_yaml, shown_name
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.settings.assessments import AssessmentSettings
from vectorize_pipelines.settings.base import AbsolutePath
from vectorize_pipelines.settings.content import (
    CorpusSettings,
    DocumentSettings,
    GallerySettings,
    ImageSettings,
    UriSettings,
)
from vectorize_pipelines.settings.gateway import GatewaySettings
from vectorize_pipelines.settings.kafka import KafkaSettings
from vectorize_pipelines.settings.models import EncoderSettings, ModelsSettings
from vectorize_pipelines.settings.providers import ProvidersSettings
from vectorize_pipelines.settings.running import (
    AlertSettings,
    CacheSettings,
    CallbackSettings,
    LedgerSettings,
    PartitionSettings,
    PipelineSettings,
    RedisSettings,
    ReembeddingSettings,
    RetentionSettings,
)
from vectorize_pipelines.settings.stores import StoreSettings

PREFIX = "VECTORIZE_"
YAML_FILE = "vectorize.yaml"
DOTENV_FILE = ".env"

#: Names from the root of the tree to one setting: ("store", "kind").
SettingPath: TypeAlias = tuple[str, ...]

# With PYDANTIC_SETTINGS_DEBUG set, the library logs every value that it merges, secrets among them, at level DEBUG.
logging.getLogger("pydantic_settings").setLevel(logging.INFO)


class Settings(BaseSettings):
    """Every setting of the project. `load_settings()` makes it; nothing else reads the environment."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, case_sensitive=True)

    home: AbsolutePath = Field(
        default_factory=lambda: project_folder() / ".vectorize", description="the one folder for all state"
    )
    home_shared: bool = Field(
        False, description="several users of the machine work in the home: its modes are left alone; else it is private"
    )
    node_name: str = Field(
        default_factory=socket.gethostname, min_length=1, description="this machine, as the others call it"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="of the command line")
    store: StoreSettings = StoreSettings()
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    models: ModelsSettings = ModelsSettings()
    encoder: EncoderSettings = EncoderSettings()
    corpus: CorpusSettings = CorpusSettings()
    gallery: GallerySettings = GallerySettings()
    documents: DocumentSettings = DocumentSettings()
    images: ImageSettings = ImageSettings()
    partitions: PartitionSettings = PartitionSettings()
    pipeline: PipelineSettings = PipelineSettings()
    cache: CacheSettings = CacheSettings()
    ledger: LedgerSettings = LedgerSettings()
    callbacks: CallbackSettings = CallbackSettings()
    uris: UriSettings = UriSettings()
    retention: RetentionSettings = RetentionSettings()
    reembedding: ReembeddingSettings = ReembeddingSettings()
    alerts: AlertSettings = AlertSettings()
    gateway: GatewaySettings = GatewaySettings()
    assessments: AssessmentSettings = AssessmentSettings()
    providers: ProvidersSettings = ProvidersSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let `Settings(…)` read nothing but its arguments: `load_settings` brings sources that know their origins."""
        return (init_settings,)


#: Names the kind of the store as well.
LEGACY_WEAVIATE = "VECTORIZE_MASTER_WEAVIATE_URL"

#: Variables of the earlier services, and the setting that each of them sets here.
LEGACY_NAMES: Mapping[str, SettingPath] = {
    "VECTORIZE_MASTER_HOST": ("gateway", "host"),
    "VECTORIZE_MASTER_PORT": ("gateway", "port"),
    "VECTORIZE_MASTER_KAFKA_BOOTSTRAP_SERVERS": ("kafka", "bootstrap_servers"),
    "VECTORIZE_MASTER_REDIS_URL": ("redis", "url"),
    LEGACY_WEAVIATE: ("store", "url"),
    "VECTORIZE_MASTER_LOG_LEVEL": ("log_level",),
    "VECTORIZE_WORKER_DEVICE": ("encoder", "device"),
}

#: Variables of the earlier services that have no counterpart, and what does their work here.
LEGACY_WITHOUT_EFFECT: Mapping[str, str] = {
    "VECTORIZE_WORKER_WORKER_ID": "Dagster names runs and their processes itself",
    "VECTORIZE_WORKER_MAX_CONCURRENT_TASKS": "`concurrency` in dagster.yaml limits what runs at once",
}

#: What starts so is not a setting: the project's own test switches.
NOT_SETTINGS = ("VECTORIZE_TEST_",)


def variable_name(path: SettingPath) -> str:
    """("store", "kind") -> "VECTORIZE_STORE__KIND"."""
    return PREFIX + "__".join(path).upper()


def setting_paths(model: type[BaseModel] = Settings, above: SettingPath = ()) -> Iterator[SettingPath]:
    """The path of every single setting, in the order of declaration."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_paths(field.annotation, (*above, name))
        else:
            yield (*above, name)


def load_settings(
    environment: Mapping[str, str] | None = None, directory: Path | None = None, **overrides: Any
) -> Settings:
    """The settings in force. Raises `SettingsError` naming the setting, where its value came from and what is wrong.

    `environment` and `directory` stand for the process's own; `overrides` (a tree, as in YAML) win over everything.
    """
    directory = directory or Path.cwd()
    dotenv_file, yaml_file = directory / DOTENV_FILE, directory / YAML_FILE
    sources = (
        _Source(overrides, "the command"),
        *_from_variables(os.environ if environment is None else environment, "the environment"),
        *_from_variables(_read_dotenv(dotenv_file), f"{dotenv_file}"),
        _Source(_read_yaml(yaml_file), f"{yaml_file}"),
    )
    try:
        return Settings(_build_sources=(sources, {}))
    except ValidationError as error:
        raise SettingsError(_explain(error, sources)) from None


class _Source(InitSettingsSource):
    """A tree of settings that have one origin: all of a file's, or the one of a variable."""

    def __init__(self, tree: dict[str, Any], origin: str) -> None:
        super().__init__(Settings, tree)
        self.tree, self.origin = tree, origin

    def has(self, path: SettingPath) -> bool:
        """Return true if there is a value, or a section, at the path."""
        value: Any = self.tree
        for name in path:
            if not isinstance(value, Mapping) or name not in value:
                return False
            value = value[name]
        return True


def _from_variables(variables: Mapping[str, str], place: str) -> Iterator[_Source]:
    """The settings among variables, strongest first; empty ones count as not given.

    Raises `SettingsError` for a name that begins as those of settings do and is none.
    """
    known = _paths_by_variable()
    given = {name.upper(): value for name, value in variables.items() if value != ""}
    for name in sorted(given, key=lambda name: name in LEGACY_NAMES):  # a current name wins over an old one
        path = LEGACY_NAMES.get(name) or known.get(name)
        if path is not None:
            yield _Source(_tree(path, given[name]), f"{name} in {place}")
        elif name.startswith(PREFIX) and name not in LEGACY_WITHOUT_EFFECT and not name.startswith(NOT_SETTINGS):
            raise SettingsError(f"{shown_name(name)} in {place} is not a setting{_did_you_mean(name, known)}")
    if LEGACY_WEAVIATE in given:
        yield _Source({"store": {"kind": "weaviate"}}, f"{LEGACY_WEAVIATE} in {place}")


@cache
def _paths_by_variable() -> Mapping[str, SettingPath]:
    return {variable_name(path): path for path in setting_paths()}


def _tree(path: SettingPath, value: str) -> dict[str, Any]:
    return {path[0]: _tree(path[1:], value) if path[1:] else value}


def _read_dotenv(file: Path) -> dict[str, str]:
    try:
        return {name: value for name, value in dotenv_values(file).items() if value is not None}
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} cannot be read: byte {error.start + 1} is not UTF-8") from None


def _read_yaml(file: Path) -> dict[str, Any]:
    content = read_yaml(file) if file.exists() else None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise SettingsError(f"{file} must hold a tree of settings, such as `store: {{kind: lancedb}}`")
    return content


def _explain(error: ValidationError, sources: Iterable[_Source]) -> str:
    """One line for each wrong setting: its name, where the value came from, what is wrong with it."""
    lines = []
    for problem in error.errors(include_url=False):
        path = tuple(str(part) for part in problem["loc"] if isinstance(part, str))
        origins = [source.origin for source in sources if source.has(path)]
        if not isinstance(problem["input"], Mapping):  # else it is a section, whose values may be of several origins
            del origins[1:]
        name = ".".join(map(shown_name, path))
        if problem["type"] == "extra_forbidden":
            wrong = " is not a setting" + _did_you_mean(name, map(".".join, setting_paths()))
        else:
            wrong = f": {problem['msg']}"
        lines.append(f"{name} (from {' and '.join(origins) or 'defaults'}){wrong}")
    return "bad settings:\n  " + "\n  ".join(lines)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
