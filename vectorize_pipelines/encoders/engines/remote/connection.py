"""One remote model with what calls to it need: keys, connections, the log, and an event loop to use them in."""

from collections.abc import Sequence

from vectorize_pipelines.core.event_loop_threads import EventLoopThread
from vectorize_pipelines.providers.calls import CallLog, ProviderClient
from vectorize_pipelines.providers.embeddings import Embedded, EmbeddingModel, Input, Vector
from vectorize_pipelines.providers.key_pool import APIKeyPool, create_key_pool_from_config
from vectorize_pipelines.providers.models import RemoteModel
from vectorize_pipelines.settings import Settings


class RemoteConnection:
    """Calls to one model, for callers without an event loop. Thread-safe: calls run side by side."""

    def __init__(self, settings: Settings, model: RemoteModel):
        """Open the log of calls and the pool of keys. Raises `SettingsError`, `LedgerError` and `KeysError`."""
        self._log = CallLog.open(settings)
        self._loop = EventLoopThread(f"vectorize-remote-{model.full_name}")
        try:
            self._pool, self._client = self._loop.run(_open(settings, self._log))
        except BaseException:
            self._loop.close()
            self._log.close()
            raise
        dimension = settings.providers.embedding_dimensions.get(model.model)
        self._model = EmbeddingModel(self._client, model, dimension)

    def probe(self) -> Vector:
        """As `EmbeddingModel.probe`."""
        return self._loop.run(self._model.probe())

    def embed(self, inputs: Sequence[Input], tokens: Sequence[int]) -> Embedded:
        """As `EmbeddingModel.embed`."""
        return self._loop.run(self._model.embed(inputs, tokens))

    def close(self) -> None:
        """Give back what is in use; a second call does nothing. Raises `LedgerError` where records are lost."""
        if self._loop.closed:
            return
        try:
            self._loop.run(_close(self._pool, self._client))
        finally:
            self._loop.close()
            self._log.close()


async def _open(settings: Settings, log: CallLog) -> tuple[APIKeyPool, ProviderClient]:
    """Open both in the event loop that they belong to."""
    pool = create_key_pool_from_config(settings=settings)
    try:
        return pool, ProviderClient(settings, pool, log)
    except BaseException:
        await pool.close()
        raise


async def _close(pool: APIKeyPool, client: ProviderClient) -> None:
    try:
        await client.close()
    finally:
        await pool.close()
