"""The form of a collection in Qdrant: its vectors and indexes as the settings want them, its model, its bulk loads.

Called by `store`. The model stands in the collection's own metadata, and so does `DEFERRED` while a bulk load goes
on: the value that the indexing threshold had before, to be restored by the next maintenance, of whichever process.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.stores.base import Collection
from vectorize_pipelines.stores.qdrant.filters import METADATA_TERMS, PARTITION_HEAD, PARTITION_TAIL

if TYPE_CHECKING:
    from vectorize_pipelines.settings import QdrantSettings

#: Keys of a collection's metadata.
MODEL, REVISION, DIMENSION, PHYSICAL = (
    "vectorize_model",
    "vectorize_revision",
    "vectorize_dimension",
    "vectorize_collection",
)
DEFERRED = "vectorize_indexing_threshold"

#: Text fields with an index, which filters and counts by value use.
INDEXED_TEXTS = ("source_id", "partition", "run_id", "modality")


def creation(spec: EncoderSpec, physical: str, settings: "QdrantSettings") -> dict[str, Any]:
    """Return the arguments of `create_collection`."""
    from qdrant_client import models

    distances = {
        "cosine": models.Distance.DOT,  # of vectors of length 1, see `points`
        "dot": models.Distance.DOT,
        "euclid": models.Distance.EUCLID,
    }
    return {
        "collection_name": physical,
        "vectors_config": models.VectorParams(
            size=spec.dimension, distance=distances[settings.distance], on_disk=settings.vectors_on_disk
        ),
        "hnsw_config": models.HnswConfigDiff(
            m=settings.hnsw_m, ef_construct=settings.hnsw_ef_construct, payload_m=settings.hnsw_payload_m
        ),
        "optimizers_config": models.OptimizersConfigDiff(indexing_threshold=settings.indexing_threshold),
        "quantization_config": _quantization(settings),
        "on_disk_payload": settings.payload_on_disk,
        "shard_number": settings.shards,
        "replication_factor": settings.replicas,
        "write_consistency_factor": settings.write_consistency_factor,
        "metadata": {
            MODEL: spec.name,
            REVISION: spec.revision,
            DIMENSION: spec.dimension,
            PHYSICAL: physical,
        },
    }


def _quantization(settings: "QdrantSettings") -> Any:
    from qdrant_client import models

    match settings.quantization:
        case "scalar":
            config = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
            return models.ScalarQuantization(scalar=config)
        case "binary":
            return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))
        case "product":
            ratio = models.CompressionRatio.X16
            return models.ProductQuantization(
                product=models.ProductQuantizationConfig(compression=ratio, always_ram=True)
            )
    return None


def payload_indexes(settings: "QdrantSettings") -> Mapping[str, Any]:
    """Return the indexes of a collection by their payload keys."""
    from qdrant_client import models

    indexes: dict[str, Any] = {
        field: models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, prefix=True)
        for field in (*INDEXED_TEXTS, METADATA_TERMS)
    }
    for key in (PARTITION_HEAD, PARTITION_TAIL):
        indexes[key] = models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, lookup=False, range=True)
    indexes["occurred_at"] = models.DatetimeIndexParams(type=models.DatetimeIndexType.DATETIME)
    if settings.tenant_field is not None:
        indexes[settings.tenant_field] = models.KeywordIndexParams(
            type=models.KeywordIndexType.KEYWORD, prefix=True, is_tenant=True
        )
    return indexes


def search_parameters(settings: "QdrantSettings") -> Any:
    """Return the `SearchParams` of every search."""
    from qdrant_client import models

    quantization = None
    if settings.quantization != "none":
        quantization = models.QuantizationSearchParams(rescore=True, oversampling=settings.oversampling)
    return models.SearchParams(hnsw_ef=settings.search_ef, exact=settings.exact, quantization=quantization)


def is_collection(info: Any) -> bool:
    """Return whether this project made the collection; a server may hold others."""
    return MODEL in (info.config.metadata or {})


def described(info: Any, name: str, kind: str, location: str) -> Collection:
    """Return the collection that an answer of `get_collection` describes."""
    metadata = info.config.metadata
    return Collection(
        name=name,
        physical=metadata[PHYSICAL],
        store=kind,
        location=location,
        model=metadata[MODEL],
        dimension=int(metadata[DIMENSION]),
    )


def deferral(info: Any) -> dict[str, Any] | None:
    """Return the arguments of `update_collection` that put off indexing and note, in one step, the threshold so far.

    None where it has been put off already or is off for good, and where the server is indexing: it changes a collection
    only once that is done.
    """
    from qdrant_client import models

    threshold = info.config.optimizer_config.indexing_threshold
    if not threshold or info.status != "green":
        return None
    return {
        "optimizers_config": models.OptimizersConfigDiff(indexing_threshold=0),
        "metadata": {DEFERRED: threshold},
    }


def restoration(info: Any) -> dict[str, Any] | None:
    """Return the arguments of `update_collection` that index again; None where nothing has been put off."""
    from qdrant_client import models

    threshold = info.config.metadata.get(DEFERRED)
    if threshold is None:
        return None
    return {
        "optimizers_config": models.OptimizersConfigDiff(indexing_threshold=int(threshold)),
        "metadata": {DEFERRED: None},  # which removes it
    }


def check_optimizer(info: Any, name: str, location: str) -> None:
    """Raise `StoreError` where the server has stopped to index and compact the collection."""
    error = getattr(info.optimizer_status, "error", None)
    if error:
        raise StoreError(
            f"maintaining {name!r} failed in {location}; its rows are unchanged, but they are no longer indexed: look "
            f"at the server's disk, memory and log, then restart it; {error}"
        )
