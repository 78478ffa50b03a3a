"""Vectors of earlier runs by what they were made from, so that no content is encoded twice by one model.

`EmbeddingCache` is what `pipeline.reuse` calls. It lies in Redis where that is configured, for any number of machines,
else in one file for all collections and processes of an installation. All of it can be lost without losing data.
"""

from vectorize_pipelines.state.embedding_cache.base import (
    EmbeddingCache,
    EmbeddingCacheError,
    EmbeddingCacheFullError,
    EmbeddingCacheUnavailableError,
    Vector,
)
from vectorize_pipelines.state.embedding_cache.opening import open_embedding_cache

__all__ = [
    "EmbeddingCache",
    "EmbeddingCacheError",
    "EmbeddingCacheFullError",
    "EmbeddingCacheUnavailableError",
    "Vector",
    "open_embedding_cache",
]
