"""Collections in Weaviate: how they are made, and what they say of themselves. Called by `store`.

A collection's description is JSON: the name that users know it by and the model whose vectors it holds. Collections
without it belong to others and are left alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vectorize_pipelines.core.records import record_schema
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.stores.filters.operands import METADATA
from vectorize_pipelines.stores.weaviate.filters import property_of
from vectorize_pipelines.stores.weaviate.rows import UNINDEXED, VECTOR
from vectorize_pipelines.stores.weaviate.texts import collection_name

if TYPE_CHECKING:
    from weaviate import WeaviateClient
    from weaviate.collections.classes.config import CollectionConfig, Property

    from vectorize_pipelines.settings import WeaviateSettings

_MARK = "vectorize_pipelines"
_EVERY_ROW = 10**12
#: The server's own setting may be lower; smaller pieces would be too many.
_LEAST_EXACT_ROWS = 1_000
_METADATA_PROPERTY = METADATA.replace(".", "_")


@dataclass(frozen=True, slots=True)
class Described:
    """A collection as the server describes it.

    native         its name in Weaviate
    physical       its name here
    model          name of the model whose vectors it holds
    revision       revision of that model
    dimension      length of its vectors
    properties     names of its properties
    distance       what its vector index compares by
    exact          whether every search compares every row, by whole vectors
    exact_rows     a search among fewer rows, left by a filter, compares each of them
    multi_tenant   whether every call has to name a tenant
    """

    native: str
    physical: str
    model: str
    revision: str
    dimension: int
    properties: frozenset[str]
    distance: str
    exact: bool
    exact_rows: int
    multi_tenant: bool

    def similarity(self, distance: float) -> float:
        """Return the cosine similarity of normalised vectors at this distance."""
        match self.distance:
            case "cosine":
                return 1.0 - distance
            case "dot":
                return -distance
            case _:
                return 1.0 - distance / 2

    @property
    def metadata_properties(self) -> frozenset[str]:
        """The properties that hold terms of metadata."""
        return frozenset(name for name in self.properties if name.startswith(_METADATA_PROPERTY))


def described(config: "CollectionConfig") -> Described | None:
    """Return what the server says of a collection; None where it is not one of this project's."""
    from weaviate.collections.classes.config import _VectorIndexConfigFlat

    try:
        description = json.loads(config.description or "")
    except ValueError:
        return None
    if not isinstance(description, dict) or _MARK not in description:
        return None
    own = description[_MARK]
    vectors: Any = (config.vector_config or {}).get(VECTOR)
    index = None if vectors is None else vectors.vector_index_config
    return Described(
        native=config.name,
        physical=own["physical"],
        model=own["model"],
        revision=own["revision"],
        dimension=own["dimension"],
        properties=frozenset(one.name for one in config.properties),
        distance=str(getattr(index, "distance_metric", "cosine")).rpartition(".")[2].lower().replace("_", "-"),
        exact=isinstance(index, _VectorIndexConfigFlat) and index.quantizer is None,
        exact_rows=_exact_rows(index),
        multi_tenant=config.multi_tenancy_config.enabled,
    )


def _exact_rows(index: Any) -> int:
    """Return the rows compared exactly: a flat index compares all; a dynamic one is HNSW with a flat one before it."""
    hnsw = getattr(index, "hnsw", index)
    cutoff: int = getattr(hnsw, "flat_search_cutoff", _EVERY_ROW)
    return max(cutoff, _LEAST_EXACT_ROWS)


def create(client: "WeaviateClient", physical: str, spec: EncoderSpec, settings: "WeaviateSettings") -> None:
    """Make the collection as the settings say. Raises what the client raises, also where it is there already."""
    from weaviate.classes.config import Configure

    native = collection_name(physical)
    if native is None:
        raise StoreError(
            f"{physical!r} cannot be a collection in Weaviate: lower-case letters, digits, _ and -, a letter first"
        )
    description = {"physical": physical, "model": spec.name, "revision": spec.revision, "dimension": spec.dimension}
    client.collections.create(
        native,
        description=json.dumps({_MARK: description}),
        properties=_properties(),
        # Existence is asked of this index.
        inverted_index_config=Configure.inverted_index(index_null_state=True),
        vector_config=_vectors(settings),
        sharding_config=None if settings.shards is None else Configure.sharding(desired_count=settings.shards),
        replication_config=Configure.replication(factor=settings.replicas),
        multi_tenancy_config=Configure.multi_tenancy(
            enabled=settings.tenant is not None, auto_tenant_activation=settings.tenant is not None
        ),
    )


def add_metadata_properties(client: "WeaviateClient", native: str, names: Sequence[str]) -> None:
    """Make the properties for terms of metadata, and `UNINDEXED`; another process may have made them before."""
    from weaviate.classes.config import DataType
    from weaviate.exceptions import UnexpectedStatusCodeError, WeaviateInvalidInputError

    config = client.collections.use(native).config
    for name in names:
        try:
            config.add_property(_text(name, DataType.TEXT_ARRAY if name == UNINDEXED else DataType.TEXT))
        except (UnexpectedStatusCodeError, WeaviateInvalidInputError):
            if all(one.name != name for one in config.get().properties):
                raise


def _properties() -> "list[Property]":
    from weaviate.classes.config import DataType, Property

    properties = []
    for field in record_schema(1):
        if pa.types.is_integer(field.type):
            properties.append(Property(name=property_of(field.name), data_type=DataType.INT, index_filterable=True))
        elif field.name != "vector":
            properties.append(_text(property_of(field.name), DataType.TEXT, filterable=field.name != "metadata"))
    return properties


def _text(name: str, data_type: Any, filterable: bool = True) -> "Property":
    """Return a property that is compared as a whole."""
    from weaviate.classes.config import Property, Tokenization

    return Property(
        name=name,
        data_type=data_type,
        tokenization=Tokenization.FIELD,
        index_filterable=filterable,
        index_searchable=False,
    )


def _vectors(settings: "WeaviateSettings") -> Any:
    from weaviate.classes.config import Configure, VectorDistances

    distance = VectorDistances(settings.distance)
    quantizer = _quantizer(settings)
    hnsw = Configure.VectorIndex.hnsw(
        distance_metric=distance,
        ef=settings.ef,
        ef_construction=settings.ef_construction,
        max_connections=settings.max_connections,
        flat_search_cutoff=settings.flat_search_cutoff,
        quantizer=quantizer if settings.index == "hnsw" else None,
    )
    if settings.index == "hnsw":
        return Configure.Vectors.self_provided(name=VECTOR, vector_index_config=hnsw)
    flat = Configure.VectorIndex.flat(
        distance_metric=distance, quantizer=quantizer if settings.index == "flat" else None
    )
    if settings.index == "flat":
        return Configure.Vectors.self_provided(name=VECTOR, vector_index_config=flat)
    return Configure.Vectors.self_provided(
        name=VECTOR, vector_index_config=Configure.VectorIndex.dynamic(distance_metric=distance, hnsw=hnsw, flat=flat)
    )


def _quantizer(settings: "WeaviateSettings") -> Any:
    from weaviate.classes.config import Configure

    kinds = Configure.VectorIndex.Quantizer
    match settings.quantization:
        case "pq":
            return kinds.pq(training_limit=settings.training_limit)
        case "bq":
            return kinds.bq(rescore_limit=settings.rescore_limit)
        case "sq":
            return kinds.sq(rescore_limit=settings.rescore_limit, training_limit=settings.training_limit)
        case "rq":
            return kinds.rq(rescore_limit=settings.rescore_limit)
        case _:
            return kinds.none()
