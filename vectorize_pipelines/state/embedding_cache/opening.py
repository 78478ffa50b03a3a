"""The one place that knows where the embedding cache lies."""

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import home
from vectorize_pipelines.state.embedding_cache.base import EmbeddingCache
from vectorize_pipelines.state.embedding_cache.redis import RedisEmbeddingCache
from vectorize_pipelines.state.embedding_cache.sqlite import SQLiteEmbeddingCache


def open_embedding_cache(settings: Settings) -> EmbeddingCache:
    """Return the cache of an installation. Raises `EmbeddingCacheError`."""
    if settings.redis.url is not None:
        return RedisEmbeddingCache(settings)
    return SQLiteEmbeddingCache(home.embedding_cache(settings), settings.cache.max_bytes)
