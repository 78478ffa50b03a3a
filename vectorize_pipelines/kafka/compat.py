"""Classes of `confluent_kafka.admin` that type checkers do not find there.

They are public, and at run time they come from there; but the module does not re-export them explicitly, so that mypy
finds them only in the private modules that define them. Nothing else imports those.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confluent_kafka.admin._config import ConfigResource
    from confluent_kafka.admin._listoffsets import OffsetSpec
    from confluent_kafka.cimpl import NewTopic


def new_topic(name: str, partitions: int, replication: int, config: Mapping[str, str]) -> "NewTopic":
    """Return a topic that is to be made."""
    from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

    topic: NewTopic = NewTopic(name, partitions, replication, config=dict(config))
    return topic


def topic_resource(name: str) -> "ConfigResource":
    """Return what names a topic where its configuration is asked for."""
    from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]

    resource: ConfigResource = ConfigResource(ConfigResource.Type.TOPIC, name)
    return resource


def broker_resource(number: int) -> "ConfigResource":
    """Return what names a broker where its configuration is asked for."""
    from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]

    resource: ConfigResource = ConfigResource(ConfigResource.Type.BROKER, str(number))
    return resource


def offset_spec(*, latest: bool) -> "OffsetSpec":
    """Return what asks for the offset after the last message of a partition or, if not `latest`, for its first."""
    from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

    spec: OffsetSpec = (OffsetSpec.latest if latest else OffsetSpec.earliest)()  # type: ignore[no-untyped-call]
    return spec
