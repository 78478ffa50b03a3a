"""Settings of the Kafka cluster, and of the runs that follow its topics."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from vectorize_pipelines.core.installation import default_file
from vectorize_pipelines.core.items import MetadataLimits
from vectorize_pipelines.settings.base import COLLECTION_NAME, AbsolutePath, Names, Section


class DrainSettings(Section):
    """Runs that follow the topics of requests."""

    target_lag_per_run: int = Field(10_000, ge=1, description="one more run for each so many messages that wait")
    max_runs: int = Field(4, ge=1, description="runs of one modality side by side; never more than partitions")
    idle_seconds: float = Field(10.0, ge=0, description="a run ends when nothing has arrived for so long")
    max_seconds: float = Field(3600.0, gt=0, description="a run ends after so long")
    batch_messages: int = Field(4000, ge=1, description="at most so many messages are taken together")
    linger_ms: int = Field(
        40, ge=1, description="so long a batch waits for more messages; those of the priority lane wait as long"
    )
    batch_bytes: int = Field(
        512 * 2**20,
        ge=1,
        description="messages are taken together only as far as they grow to so many bytes: rows, vectors, metadata in "
        "every row; a message that alone grows to more is refused",
    )
    ageing_seconds: float = Field(
        5.0, ge=0, description="a message that has waited so long goes before the priority lane's next batch"
    )
    transaction_timeout_seconds: float = Field(
        60.0, ge=1, le=900, description="the broker aborts a run's transaction that is open for so long"
    )
    attempts: int = Field(5, ge=1, description="how often a failure that may pass is tried before the run fails")
    retry_seconds: float = Field(0.5, gt=0, description="pause before the second attempt; each next is twice as long")


#: What Kafka allows for the name of a topic.
_TOPIC_NAME = r"^[A-Za-z0-9._-]{1,249}$"


def _servers(addresses: str | None) -> str | None:
    if addresses is not None and "@" in addresses:
        raise ValueError("must be host:port, separated by commas; user and password are settings of their own")
    return addresses


class KafkaSettings(Section):
    """The Kafka cluster."""

    bootstrap_servers: Annotated[str | None, AfterValidator(_servers)] = Field(
        None, description="host:port, separated by commas"
    )
    topic_prefix: str = Field(
        "vectorize", pattern=r"^[A-Za-z0-9._-]{1,200}$", description="what every topic's name starts with"
    )
    detections_topic: str = Field(
        "detection-results-topic", pattern=_TOPIC_NAME, description="the topic of detections by cameras"
    )
    assessment_tasks_topic: str = Field(
        "assessment-tasks-topic", pattern=_TOPIC_NAME, description="the topic of groups to be assessed"
    )
    risk_results_topic: str = Field(
        "risk-assessment-results-topic", pattern=_TOPIC_NAME, description="the topic of what became of each of them"
    )
    assessment_dead_letter_topic: str = Field(
        "assessment-dlq-topic",
        pattern=_TOPIC_NAME,
        description="the topic of detections and groups that failed for a reason of their own",
    )
    consumer_group: str | None = Field(None, description="group of the committed offsets; null: the topic prefix")
    config_file: AbsolutePath = Field(
        default_file("kafka.yaml"), description="how topics are made, and further properties of clients"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="TLS and SASL, as Kafka names them"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        None, description="needed by SASL_PLAINTEXT and SASL_SSL"
    )
    sasl_username: str | None = Field(None, description="for PLAIN and SCRAM")
    sasl_password: SecretStr | None = Field(None, description="for PLAIN and SCRAM")
    oauth_token_endpoint: str | None = Field(None, description="for OAUTHBEARER: where tokens are had, an https URL")
    oauth_client_id: str | None = Field(None, description="for OAUTHBEARER")
    oauth_client_secret: SecretStr | None = Field(None, description="for OAUTHBEARER")
    oauth_scope: str | None = Field(None, description="for OAUTHBEARER, where the provider asks for one")
    ssl_ca_location: Path | None = Field(None, description="PEM file that vouches for the brokers; null: the system's")
    ssl_certificate_location: Path | None = Field(None, description="PEM file of the client's own certificate")
    ssl_key_location: Path | None = Field(None, description="PEM file of its key")
    ssl_key_password: SecretStr | None = Field(None, description="password of that key")
    request_seconds: float = Field(30.0, gt=0, description="limit for a request to the brokers, and for a delivery")
    allowed_models: Names = Field(
        (),
        description="models that requests may name beside those of the settings and of existing collections; "
        "*: any of the hub, and folders below uris.allowed_roots",
    )
    max_metadata_bytes: int = Field(
        64 * 2**10, ge=1, description="a request, or a document in one, with more metadata (as JSON) is refused"
    )
    max_metadata_values: int = Field(1000, ge=1, description="the same, by values; those within others count too")
    text_collection: str = Field("texts", pattern=COLLECTION_NAME, description="for texts that name no collection")
    image_collection: str = Field("images", pattern=COLLECTION_NAME, description="for images that name no collection")
    document_collection: str = Field(
        "documents", pattern=COLLECTION_NAME, description="for documents that name no collection"
    )
    drain: DrainSettings = DrainSettings()

    def collection(self, modality: str) -> str:
        """Where requests of a modality go that name neither collection nor model."""
        name: str = getattr(self, f"{modality}_collection")
        return name

    @property
    def metadata_limits(self) -> MetadataLimits:
        """What the metadata of a request, or of a document in one, may have."""
        return MetadataLimits(self.max_metadata_bytes, self.max_metadata_values)

    @property
    def group(self) -> str:
        """The consumer group of runs that drain."""
        return self.consumer_group or self.topic_prefix

    @model_validator(mode="after")
    def _topics_differ(self) -> Self:
        """One topic of two roles would feed what is read from it back to its reader."""
        names = (
            self.detections_topic,
            self.assessment_tasks_topic,
            self.risk_results_topic,
            self.assessment_dead_letter_topic,
        )
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"detections_topic, assessment_tasks_topic, risk_results_topic and assessment_dead_letter_topic "
                    f"must differ: {name} stands there twice"
                )
        return self

    @model_validator(mode="after")
    def _security_is_complete(self) -> Self:
        """What would otherwise connect without the protection that was meant, or fail with a client's riddle."""
        if self.security_protocol.startswith("SASL"):
            if self.sasl_mechanism is None:
                raise ValueError(f"security_protocol {self.security_protocol} needs sasl_mechanism")
            needed = (
                ("oauth_token_endpoint", "oauth_client_id", "oauth_client_secret")
                if self.sasl_mechanism == "OAUTHBEARER"
                else ("sasl_username", "sasl_password")
            )
            missing = [name for name in needed if getattr(self, name) is None]
            if missing:
                raise ValueError(f"sasl_mechanism {self.sasl_mechanism} needs {' and '.join(missing)}")
        elif self.sasl_mechanism is not None:
            raise ValueError(
                f"sasl_mechanism needs security_protocol SASL_SSL (or SASL_PLAINTEXT), not {self.security_protocol}"
            )
        if not self.security_protocol.endswith("SSL") and self.ssl_ca_location is not None:
            raise ValueError(f"ssl_ca_location needs security_protocol SSL or SASL_SSL, not {self.security_protocol}")
        return self
