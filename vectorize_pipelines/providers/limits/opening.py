"""Choosing where the use of keys is kept."""

from vectorize_pipelines.providers.limits.base import SharedUse, Windows
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.home import key_use_file


def open_shared_use(settings: Settings, windows: Windows) -> SharedUse:
    """Return the use of keys in Redis where `redis.url` is set, else in a file of the home for this machine alone."""
    if settings.redis.url is not None:
        from vectorize_pipelines.providers.limits.redis import RedisUse

        return RedisUse(settings, windows)
    from vectorize_pipelines.providers.limits.sqlite import SQLiteUse

    return SQLiteUse(key_use_file(settings), windows)
