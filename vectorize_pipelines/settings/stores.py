"""Settings of the vector store."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator

from vectorize_pipelines.core.urls import shown_url
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.settings.base import Section, read_json

_BATCH_ROWS = "rows of one request that writes"
_CONCURRENCY = "requests of an upsert that are under way at a time"
#: How a value refers to an environment variable.
_REFERENCE = "env:"
#: Names of storage options whose values are secrets: secret_access_key, account_key, session_token, sas_token, …
_SECRET_OPTION = re.compile(r"(key|token|secret|password|key_base64)$", re.IGNORECASE)


def _as_options(value: Any) -> Any:
    """Return a mapping of texts: in YAML and in JSON a value may be a number, or true and false."""
    options = read_json(value)
    if not isinstance(options, dict):
        return options
    return {name: str(each).lower() if isinstance(each, bool | int | float) else each for name, each in options.items()}


class LanceDBSettings(Section):
    """LanceDB in an object store."""

    storage_options: Annotated[dict[str, str], BeforeValidator(_as_options)] = Field(
        {},
        description="of an object store, as LanceDB names them: `{endpoint: https://minio:9000, region: us-east-1, "
        "access_key_id: …, secret_access_key: env:NAME}`; `env:NAME` is the value of that variable, the only way to "
        "give a secret; what is not given is taken from the environment (`AWS_ACCESS_KEY_ID`, `AWS_REGION`, …)",
    )

    @field_validator("storage_options")
    @classmethod
    def _secrets_are_references(cls, options: dict[str, str]) -> dict[str, str]:
        for name, value in options.items():
            in_url = "://" in value and shown_url(value) != value.rstrip("/")
            is_secret = in_url or _SECRET_OPTION.search(name) is not None
            if is_secret and not value.startswith(_REFERENCE):
                raise ValueError(f"{name} holds a secret: write {_REFERENCE}NAME, and put it into that variable")
        return options

    def resolved_options(self) -> tuple[dict[str, str], tuple[str, ...]]:
        """Return the storage options with the values of the variables that they refer to, and these values alone.

        Raises `SettingsError` where a variable is not set.
        """
        resolved, secrets = dict(self.storage_options), []
        for name, value in self.storage_options.items():
            if not value.startswith(_REFERENCE):
                continue
            variable = value.removeprefix(_REFERENCE)
            if variable not in os.environ:
                raise SettingsError(
                    f"store.lancedb.storage_options.{name} refers to the variable {variable}, which is not set"
                )
            resolved[name] = os.environ[variable]
            secrets.append(resolved[name])
        return resolved, tuple(secrets)


class _ServerSettings(Section):
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


class StoreSettings(Section):
    """The vector store."""

    kind: str = Field("lancedb", description="lancedb, qdrant, weaviate, or a store plugged in through an entry point")
    url: str | None = Field(
        None,
        description="address of a store server; a folder or the URI of an object store (s3://bucket/path, gs://, "
        "az://) for lancedb, a folder for qdrant",
    )
    grpc_port: int | None = Field(None, ge=1, le=65535, description="gRPC port of a store server")
    api_key: SecretStr | None = Field(None, description="key of a store server")
    lancedb: LanceDBSettings = LanceDBSettings()
    qdrant: QdrantSettings = QdrantSettings()
    weaviate: WeaviateSettings = WeaviateSettings()
