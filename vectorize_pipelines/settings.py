"""The one typed settings object. Where a value comes from, strongest first:

1. environment variables, prefix `VECTORIZE_`, `__` between levels: `VECTORIZE_STORE__KIND=lancedb`
2. the same names in `.env`
3. the same tree, lower case, in `vectorize.yaml`
4. the defaults below

Both files are looked for in the working directory. The names that users of the earlier master and worker
services have in their environments are read as aliases (`LEGACY_NAMES`).
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.images.decoding import DEFAULT_LIMITS

PREFIX = "VECTORIZE_"
YAML_FILE = "vectorize.yaml"
DOTENV_FILE = ".env"
PROJECT_ROOT = Path(__file__).resolve().parent.parent
DEFAULT_TEXT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_IMAGE_MODEL = "ViT-B/32"

COLLECTION_NAME = r"^[a-z][a-z0-9_-]{0,62}$"
COLLECTION_CHARACTERS = 63
#: The same in words, for messages that begin with the name.
COLLECTION_RULE = f"must match {COLLECTION_NAME}: lower-case letters, digits, _ and -, a letter first, 63 at most"


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _absolute_or_none(path: Path | None) -> Path | None:
    return None if path is None else _absolute(path)


def _split_commas(value: Any) -> Any:
    """An environment variable holds a list as `a,b`, or as JSON; YAML has lists of its own."""
    if not isinstance(value, str):
        return value
    with suppress(ValueError):  # a pattern may begin with a bracket too
        if value.lstrip().startswith("["):
            return json.loads(value)
    return tuple(part.strip() for part in value.split(",") if part.strip())


Names = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_BATCH_ROWS = "rows of one request that writes"
_CONCURRENCY = "requests of an upsert that are under way at a time"


class _ServerSettings(_Section):
    """What the stores that are servers have in common. Shards and replicas are those of new collections."""

    shards: int | None = Field(None, ge=1, description="shards of a collection; null: one a node")
    replicas: int = Field(1, ge=1, description="copies of each shard")
    retries: int = Field(5, ge=0, description="further attempts where the server is away or overloaded")
    retry_seconds: float = Field(0.5, gt=0, description="pause before the first of them; each next is twice as long")


class QdrantSettings(_ServerSettings):
    """Qdrant. What shapes a collection counts when it is created; in a folder only `distance` and the rows count."""

    distance: Literal["cosine", "dot", "euclid"] = Field("cosine", description="what makes vectors near")
    hnsw_m: int = Field(16, ge=0, description="links of a vector in the index")
    hnsw_payload_m: int | None = Field(None, ge=0, description="links within one tenant; null: as hnsw_m")
    hnsw_ef_construct: int = Field(100, ge=4, description="neighbours looked at when the index is built")
    search_ef: int | None = Field(None, ge=1, description="neighbours looked at by a search; null: hnsw_ef_construct")
    exact: bool = Field(False, description="searches compare every vector, whatever is indexed")
    quantization: Literal["none", "scalar", "binary", "product"] = Field(
        "none", description="smaller copies of the vectors to search in"
    )
    oversampling: float | None = Field(
        None, ge=1, description="candidates taken from quantized vectors, as a multiple of the hits wanted"
    )
    vectors_on_disk: bool = Field(False, description="vectors are read from disk, not kept in memory")
    payload_on_disk: bool = Field(True, description="fields are read from disk, but for the indexed ones")
    write_consistency_factor: int = Field(1, ge=1, description="copies that must have a write before it is done")
    indexing_threshold: int = Field(10_000, ge=1, description="kB of vectors of a segment from which on it is indexed")
    bulk_rows: int = Field(
        20_000,
        ge=0,
        description="rows between two maintenances that make a bulk load, not indexed until it ends; 0: none",
    )
    tenant_field: str | None = Field(
        None,
        pattern=r"^(metadata\.[A-Za-z0-9_-]+|source_id|partition|run_id|modality)$",
        description="rows are laid out by it for searches within one tenant, e.g. metadata.tenant",
    )
    batch_rows: int = Field(512, ge=1, description=_BATCH_ROWS)
    concurrency: int = Field(2, ge=1, description=_CONCURRENCY)
    timeout_seconds: float = Field(60.0, gt=0, description="limit for a request")
    ca_certificate: Path | None = Field(None, description="PEM file that vouches for an https:// server")


class WeaviateSettings(_ServerSettings):
    """What only Weaviate knows. Distance, index and shards are those of new collections; the rest holds for every call.

    https in `store.url` is TLS for HTTP and gRPC.
    """

    tenant: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="collections are multi-tenant, and every call goes to this tenant",
    )
    grpc_host: str | None = Field(None, description="host of the gRPC port, where it is not that of store.url")
    trust_environment: bool = Field(
        False, description="take proxies and the certificates in SSL_CERT_FILE from the environment"
    )
    connect_seconds: float = Field(5.0, gt=0, description="limit for opening the store")
    query_seconds: float = Field(60.0, gt=0, description="limit for a query, a count or a deletion's look-up")
    write_seconds: float = Field(120.0, gt=0, description="limit for a batch of writes, and for a deletion")
    batch_rows: int = Field(250, ge=1, description=_BATCH_ROWS)
    concurrency: int = Field(4, ge=1, description=_CONCURRENCY)
    consistency: Literal["ONE", "QUORUM", "ALL"] | None = Field(
        None, description="how many replicas confirm a write or answer a query; null: the server's default"
    )
    metadata_names: int = Field(
        256, ge=1, description="names of metadata that a collection indexes; filters on others are refused"
    )
    index: Literal["hnsw", "flat", "dynamic"] = Field("hnsw", description="kind of vector index")
    distance: Literal["cosine", "dot", "l2-squared"] = Field("cosine", description="what the vector index compares by")
    ef: int = Field(-1, ge=-1, description="HNSW: size of the list that a search keeps; -1: by the search's limit")
    ef_construction: int = Field(128, ge=4, description="HNSW: the same while the index is built")
    max_connections: int = Field(32, ge=4, description="HNSW: edges of a node")
    flat_search_cutoff: int = Field(
        40_000, ge=1_000, description="HNSW: a filter that leaves fewer rows is searched without the index, exactly"
    )
    quantization: Literal["none", "pq", "bq", "sq", "rq"] = Field("none", description="compression of the index")
    rescore_limit: int | None = Field(
        None, ge=0, description="candidates compared again uncompressed; null: the server's"
    )
    training_limit: int = Field(100_000, ge=1, description="rows from which pq and sq learn their compression")


class StoreSettings(_Section):
    """The vector store."""

    kind: str = Field("lancedb", description="lancedb, qdrant, weaviate, or a store plugged in through an entry point")
    url: str | None = Field(
        None, description="address of a store server; a folder or object-store URI for lancedb, a folder for qdrant"
    )
    grpc_port: int | None = Field(None, ge=1, le=65535, description="gRPC port of a store server")
    api_key: SecretStr | None = Field(None, description="key of a store server")
    qdrant: QdrantSettings = QdrantSettings()
    weaviate: WeaviateSettings = WeaviateSettings()


class DrainSettings(_Section):
    """Runs that follow the topics of requests."""

    target_lag_per_run: int = Field(10_000, ge=1, description="one more run for each so many messages that wait")
    max_runs: int = Field(4, ge=1, description="runs of one modality side by side; never more than partitions")
    idle_seconds: float = Field(10.0, ge=0, description="a run ends when nothing has arrived for so long")
    max_seconds: float = Field(3600.0, gt=0, description="a run ends after so long")
    batch_messages: int = Field(4000, ge=1, description="at most so many messages are taken together")
    linger_ms: int = Field(
        40, ge=1, description="so long a batch waits for more messages; those of the priority lane wait as long"
    )
    ageing_seconds: float = Field(
        5.0, ge=0, description="a message that has waited so long goes before the priority lane's next batch"
    )
    transaction_timeout_seconds: float = Field(
        60.0, ge=1, le=900, description="the broker aborts a run's transaction that is open for so long"
    )
    attempts: int = Field(5, ge=1, description="how often a failure that may pass is tried before the run fails")
    retry_seconds: float = Field(0.5, gt=0, description="pause before the second attempt; each next is twice as long")


class KafkaSettings(_Section):
    """The Kafka cluster."""

    bootstrap_servers: str | None = Field(None, description="host:port, separated by commas")
    topic_prefix: str = Field(
        "vectorize", pattern=r"^[A-Za-z0-9._-]{1,200}$", description="what every topic's name starts with"
    )
    consumer_group: str | None = Field(None, description="group of the committed offsets; null: the topic prefix")
    config_file: Annotated[Path, AfterValidator(_absolute)] = Field(
        PROJECT_ROOT / "config" / "kafka.yaml", description="how topics are made, and further properties of clients"
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
        (), description="models that requests may name beside those of models.text and models.image; empty: any"
    )
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
    def group(self) -> str:
        """The consumer group of runs that drain."""
        return self.consumer_group or self.topic_prefix

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


class RedisSettings(_Section):
    """Shared state, where SQLite files are not enough."""

    url: SecretStr | None = Field(None, description="redis://host:6379/0")


class ModelsSettings(_Section):
    """Models by modality: a name of the hub, a local directory, or the bundled default."""

    text: str = Field(DEFAULT_TEXT_MODEL, description="for texts and documents")
    image: str = Field(DEFAULT_IMAGE_MODEL, description="for images and the texts that are searched among them")
    dimension: int | None = Field(
        None, ge=1, description="text vectors are cut to so many dimensions (Matryoshka models); null: all"
    )


def _device_name(device: str) -> str:
    name = device.strip().lower()
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"there is no device {device!r}; choose one of auto, cpu, cuda, cuda:N, mps")
    return name


class EncoderSettings(_Section):
    """How models run."""

    engine: Literal["auto", "open_clip", "openvino", "torch", "sentence-transformers"] = Field(
        "auto", description="auto: the first that reproduces the model on the device"
    )
    device: Annotated[str, AfterValidator(_device_name)] = Field(
        "auto", description="auto, cpu, cuda, cuda:N, mps; cuda and auto go round several GPUs"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: the fastest that was measured equal to float32; another is refused where it is not"
    )
    token_budget: int | None = Field(
        None, ge=1, description="tokens that one batch may have, padding included; null: what the engine found best"
    )
    max_loaded: int = Field(3, ge=1, description="models that a process keeps loaded")
    memory_bytes: int | None = Field(
        None, ge=1, description="what loaded models may take on a device together; null: what the device has"
    )
    cache_directory: Annotated[Path | None, AfterValidator(_absolute_or_none)] = Field(
        None, description="exports and what was measured of models; null: encoders/ in the home"
    )


class CorpusSettings(_Section):
    """The folder of documents behind the asset `corpus_embeddings`."""

    path: str = Field(str(PROJECT_ROOT / "examples" / "corpus"), description="a folder, a file or any fsspec URL")
    collection: str = Field("corpus", pattern=COLLECTION_NAME, description="the collection it is stored in")
    watch: bool = Field(True, description="sensor and schedule are on from the start, for a path of your own")
    include: Names = Field((), description="patterns of what is taken; empty: supported formats")
    exclude: Names = Field((".*",), description="patterns of what is left out, as in .gitignore")


class GallerySettings(_Section):
    """The folder of images behind the asset `gallery_embeddings`."""

    path: str | None = Field(None, description="a folder, a file or any fsspec URL")
    collection: str = Field("gallery", pattern=COLLECTION_NAME, description="the collection it is stored in")
    watch: bool = Field(True, description="sensor and schedule are on from the start, where there is a path")
    include: Names = Field((), description="patterns of what is taken; empty: supported formats")
    exclude: Names = Field((".*",), description="patterns of what is left out, as in .gitignore")


class DocumentSettings(_Section):
    """Reading and cutting documents; the limits are per file."""

    max_file_bytes: int = Field(100 * 2**20, ge=1, description="a larger file is refused, unread")
    max_decompressed_bytes: int = Field(400 * 2**20, ge=1, description="what a compressed file may grow to")
    timeout_seconds: float = Field(120.0, gt=0, description="a file that takes longer to parse is refused")
    memory_bytes: int = Field(4 * 2**30, ge=2**28, description="address space of a parser process")
    parser_processes: int = Field(max(1, (os.cpu_count() or 2) // 2), ge=1, description="files parsed side by side")
    pdf_engine: Literal["auto", "pdfium", "pypdf"] = Field("auto", description="auto: pypdf where pdfium fails")
    text_columns: Names = Field(("text",), description="columns of a table that are embedded, joined by a line")
    metadata_columns: Names | None = Field(None, description="columns kept as metadata; null: all others")
    chunk_tokens: int | None = Field(None, ge=16, description="longest chunk in tokens; null: what the model takes")
    overlap_tokens: int = Field(32, ge=0, description="tokens repeated from one chunk to the next")


class ImageSettings(_Section):
    """Reading images; the limits are per image."""

    max_file_bytes: int = Field(DEFAULT_LIMITS.max_bytes, ge=1, description="a larger file is refused, unread")
    max_pixels: int = Field(
        DEFAULT_LIMITS.max_pixels, ge=1, description="an image of more pixels, width times height, is refused"
    )
    decoding_threads: int | None = Field(None, ge=1, description="images decoded side by side; null: one a core")


def _in_the_past(day: date) -> date:
    if day > datetime.now(UTC).date():
        raise ValueError(f"{day} lies in the future; give the day of the oldest file or message")
    return day


class PartitionSettings(_Section):
    """The daily partitions."""

    start: Annotated[date, AfterValidator(_in_the_past)] = Field(
        date(2020, 1, 1), description="first day; what is older belongs to it too"
    )


def _on_or_off(value: Any) -> Any:
    """YAML reads a bare `on` or `off` as true or false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class CacheSettings(_Section):
    """Vectors kept by model and content, so that the same content is not encoded again."""

    enabled: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = Field(
        "auto", description="auto: a run leaves the embedding cache alone once it costs more than it saves"
    )
    max_bytes: int = Field(2**30, ge=2**20, description="size of the cache; what was used longest ago goes first")


class LedgerSettings(_Section):
    """What became of each request, and which message each source's rows come from."""

    url: SecretStr | None = Field(
        None, description="postgresql://… or sqlite:///…; null: the database that Dagster uses, or a file beside it"
    )
    retention_days: int = Field(30, ge=1, description="so long finished requests and callbacks are remembered")


class CallbackSettings(_Section):
    """Posting what became of a request to its `callback_url`."""

    secret: SecretStr | None = Field(None, description="signs every callback; null: they are not signed")
    attempts: int = Field(8, ge=1, description="a callback is given up after so many")
    timeout_seconds: float = Field(10.0, gt=0, description="limit for one attempt, in all")
    allow_private: bool = Field(False, description="private and loopback addresses may be posted to")


class UriSettings(_Section):
    """From where the content of a request may be fetched."""

    allowed_schemes: Names = Field(
        ("https", "http"), description="of URIs; s3, gs, … go through fsspec with this installation's credentials"
    )
    allowed_hosts: Names = Field(
        (), description="hosts, *.domains or buckets; empty: every public host, and every bucket of an allowed scheme"
    )
    allowed_roots: Names = Field((), description="folders from which local files are read; empty: none")
    allow_private: bool = Field(False, description="private and loopback addresses may be fetched from")
    max_bytes: int = Field(100 * 2**20, ge=1, description="a larger content is refused, also once decompressed")
    max_held_bytes: int = Field(
        512 * 2**20,
        ge=1,
        description="so much fetched content a run over requests holds at a time; what is being fetched counts with "
        "its limit, or the size that its URI announces; a request that needs more by itself is refused",
    )
    timeout_seconds: float = Field(60.0, gt=0, description="limit for one content, redirects included")
    max_redirects: int = Field(5, ge=0, description="each is checked as the first address is")


class RetentionSettings(_Section):
    """What the daily clean-up removes, beside what `ledger.retention_days` says."""

    deletions_days: int | None = Field(
        None,
        ge=1,
        description="deletions by null messages are forgotten after so many days, which must be more than any topic "
        "keeps its messages; null: never",
    )
    runs_days: int | None = Field(
        None,
        ge=1,
        description="finished runs and their events are deleted after so many days, but for the latest of a partition; "
        "null: kept",
    )


class ReembeddingSettings(_Section):
    """Changing the model of a collection."""

    keep_days: float = Field(
        7.0, ge=0, description="so long the old collection is kept up to date after a switch, then it is dropped"
    )
    least_recall: float = Field(
        0.95, ge=0, le=1, description="share of passages that must find themselves in the new collection"
    )


class AlertSettings(_Section):
    """Who hears of failed runs."""

    webhook_url: SecretStr | None = Field(None, description="a failed run is posted here as JSON")


class PipelineSettings(_Section):
    """How items flow from source to store."""

    batch_items: int = Field(2048, ge=1, description="at most so many items are encoded and written together")
    queue_batches: int = Field(1, ge=1, description="batches that may wait between two stages")
    store_outage_seconds: float = Field(
        300.0, ge=0, description="how long a run waits for a store that is away; 0: it fails at once"
    )
    spill_bytes: int = Field(
        2**30, ge=0, description="batches that go to disk meanwhile; beyond, encoding waits; 0: it waits at once"
    )


class Settings(_Section):
    """Every setting of the project. `load_settings()` makes it; nothing else reads the environment."""

    home: Annotated[Path, AfterValidator(_absolute)] = Field(
        PROJECT_ROOT / ".vectorize", description="the one folder for all state"
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


#: Variables of the earlier services, and the setting that each of them sets here.
LEGACY_NAMES: Mapping[str, tuple[str, ...]] = {
    "VECTORIZE_MASTER_KAFKA_BOOTSTRAP_SERVERS": ("kafka", "bootstrap_servers"),
    "VECTORIZE_MASTER_REDIS_URL": ("redis", "url"),
    "VECTORIZE_MASTER_WEAVIATE_URL": ("store", "url"),
    "VECTORIZE_MASTER_LOG_LEVEL": ("log_level",),
    "VECTORIZE_WORKER_DEVICE": ("encoder", "device"),
}

#: Variables of the earlier services that have no counterpart, and what does their work here.
LEGACY_WITHOUT_EFFECT: Mapping[str, str] = {
    "VECTORIZE_MASTER_HOST": "the web server's address is given to `dagster-webserver --host`",
    "VECTORIZE_MASTER_PORT": "the web server's port is given to `make dev PORT=…`",
    "VECTORIZE_WORKER_WORKER_ID": "Dagster names runs and their processes itself",
    "VECTORIZE_WORKER_MAX_CONCURRENT_TASKS": "`concurrency` in dagster.yaml limits what runs at once",
}

#: What starts so is not a setting: the project's own test switches.
NOT_SETTINGS = ("VECTORIZE_TEST_",)


def variable_name(path: tuple[str, ...]) -> str:
    """("store", "kind") -> "VECTORIZE_STORE__KIND"."""
    return PREFIX + "__".join(part.upper() for part in path)


def setting_paths(model: type[BaseModel] = Settings, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
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
    dotenv = {name: value for name, value in dotenv_values(dotenv_file).items() if value is not None}
    environment = os.environ if environment is None else environment
    tree: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    _merge(tree, _read_yaml(yaml_file), f"{yaml_file}", origins)
    _merge(tree, _tree_of_variables(dotenv, f"{dotenv_file}", origins), None, origins)
    _merge(tree, _tree_of_variables(environment, "the environment", origins), None, origins)
    _merge(tree, overrides, "the command", origins)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_explain(error, origins)) from None


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read as YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{file} must hold a tree of settings, such as `store: {{kind: lancedb}}`")
    return content


def _tree_of_variables(
    variables: Mapping[str, str], source: str, origins: dict[tuple[str, ...], str]
) -> dict[str, Any]:
    """Those of `variables` that are settings, as a tree; empty ones count as not given."""
    known = {variable_name(path): path for path in setting_paths()}
    tree: dict[str, Any] = {}
    given = {name.upper(): value for name, value in variables.items() if value != ""}
    for name in sorted(given, key=lambda name: name not in LEGACY_NAMES):  # a current name wins over an old one
        path = LEGACY_NAMES.get(name) or known.get(name)
        if path is not None:
            _set(tree, path, given[name])
            origins[path] = f"{name} in {source}"
        elif name.startswith(PREFIX) and name not in LEGACY_WITHOUT_EFFECT and not name.startswith(NOT_SETTINGS):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"{name} in {source} is not a setting{hint}")
    if "VECTORIZE_MASTER_WEAVIATE_URL" in given and "VECTORIZE_STORE__KIND" not in given:
        _set(tree, ("store", "kind"), "weaviate")
        origins["store", "kind"] = f"VECTORIZE_MASTER_WEAVIATE_URL in {source}"
    return tree


def _set(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def _merge(
    tree: dict[str, Any],
    stronger: Mapping[str, Any],
    source: str | None,
    origins: dict[tuple[str, ...], str],
    above: tuple[str, ...] = (),
) -> None:
    """Lays `stronger` over `tree`; `source` is noted as the origin of each value, unless it is known already."""
    for name, value in stronger.items():
        path = (*above, str(name))
        if isinstance(value, Mapping) and isinstance(tree.setdefault(name, {}), dict):
            _merge(tree[name], value, source, origins, path)
        else:
            tree[name] = value
            if source is not None:
                origins[path] = source


def _explain(error: ValidationError, origins: Mapping[tuple[str, ...], str]) -> str:
    """One line for each wrong setting: its name, where the value came from, what is wrong with it."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        path = tuple(str(part) for part in problem["loc"] if isinstance(part, str))
        origin = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), "defaults")
        name = ".".join(path)
        if problem["type"] == "extra_forbidden":
            names = [".".join(known) for known in setting_paths()]
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            lines.append(f"{name} (from {origin}) is not a setting{hint}")
        else:
            lines.append(f"{name} (from {origin}): {problem['msg']}")
    return "bad settings:\n  " + "\n  ".join(lines)
