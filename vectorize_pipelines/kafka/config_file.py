"""`config/kafka.yaml`: how topics are made, and further properties of the clients."""

import os
import re
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vectorize_pipelines.core.yaml_files import fill_references, parse_yaml, shown_name
from vectorize_pipelines.errors import SettingsError

#: What the guarantees of delivery rest on, and what the settings say.
RESERVED = frozenset(
    (
        "acks",
        "auto.offset.reset",
        "bootstrap.servers",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.idempotence",
        "enable.partition.eof",
        "group.id",
        "isolation.level",
        "request.required.acks",
        "transactional.id",
    )
)
#: Properties of librdkafka whose values are secrets.
_SECRET_NAME = re.compile(
    r"password|passphrase|secret|token|credential|assertion|jaas|kinit|oauthbearer\.config|\b(key|pem)$", re.IGNORECASE
)


class TopicConfig(BaseModel):
    """One topic; what is None counts as the defaults say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partitions: int | None = Field(None, ge=1)
    replication: int | None = Field(None, ge=1)
    config: dict[str, str | int | float | bool] = {}


class TopicConfigs(BaseModel):
    """The topics by their role."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    defaults: TopicConfig = TopicConfig()
    text: TopicConfig = TopicConfig()
    image: TopicConfig = TopicConfig()
    document: TopicConfig = TopicConfig()
    results: TopicConfig = TopicConfig()
    control: TopicConfig = TopicConfig()
    dead_letter: TopicConfig = TopicConfig()
    detections: TopicConfig = TopicConfig()
    assessment_tasks: TopicConfig = TopicConfig()
    risk_results: TopicConfig = TopicConfig()
    assessment_dead_letter: TopicConfig = TopicConfig()


class KafkaConfig(BaseModel):
    """The whole file. `secrets` are the values that no error may repeat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    topics: TopicConfigs = TopicConfigs()
    producer: dict[str, str | int | float | bool] = {}
    consumer: dict[str, str | int | float | bool] = {}
    secrets: frozenset[str] = Field(frozenset(), exclude=True)


def read_config(file: Path) -> KafkaConfig:
    """The file's content. Raises `SettingsError` naming the file, the field and what is wrong; no value of it."""
    try:
        return _parse(file, file.read_text(encoding="utf-8"), tuple(sorted(os.environ.items())))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"kafka.config_file {file} cannot be read: {error}") from None


@lru_cache(maxsize=8)
def _parse(file: Path, text: str, environment: tuple[tuple[str, str], ...]) -> KafkaConfig:
    tree = parse_yaml(file, text) or {}
    if not isinstance(tree, dict) or "secrets" in tree:
        raise SettingsError(f"{file} must hold a tree with topics, producer and consumer")
    secrets: set[str] = set()
    try:
        filled = fill_references(tree, dict(environment), secrets)
    except KeyError as error:
        raise SettingsError(
            f"{file} refers to ${{{error.args[0]}}}, and the environment has no such variable"
        ) from None
    try:
        config = KafkaConfig.model_validate({**filled, "secrets": frozenset(secrets)})
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        lines = [f"{'.'.join(shown_name(str(part)) for part in each['loc'])}: {each['msg']}" for each in problems]
        raise SettingsError(f"{file} is wrong:\n  " + "\n  ".join(lines)) from None
    for section, properties in (("producer", config.producer), ("consumer", config.consumer)):
        for name in sorted(RESERVED & properties.keys()):
            raise SettingsError(f"{file}: {section}.{name} is set by this project and cannot be changed here")
    return config.model_copy(update={"secrets": config.secrets | _written_secrets(config)})


def _written_secrets(config: KafkaConfig) -> frozenset[str]:
    """The values that stand in the file itself, under a name that says they are secrets."""
    both = (*config.producer.items(), *config.consumer.items())
    return frozenset(value for name, value in both if isinstance(value, str) and _SECRET_NAME.search(name))
