"""The model that the settings name, with everything that a call of it needs."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from vectorize_pipelines.providers.answers import AnswerCache
from vectorize_pipelines.providers.calls import CallLog, ProviderClient
from vectorize_pipelines.providers.chat import ChatModel
from vectorize_pipelines.providers.key_pool import create_key_pool_from_config
from vectorize_pipelines.settings import Settings


@asynccontextmanager
async def configured_chat_model(settings: Settings, model: str | None = None) -> AsyncIterator[ChatModel]:
    """Open a model, that of `providers.model` where none is named, for the event loop that runs; closed at the end.

    Raises `SettingsError`, `LedgerError`, `KeysError`, and `MissingExtraError` where its libraries are not installed.
    """
    async with AsyncExitStack() as resources:
        pool = create_key_pool_from_config(settings=settings)
        resources.push_async_callback(pool.close)
        log = CallLog.open(settings)
        resources.callback(log.close)
        answers = AnswerCache.open(settings)
        if answers is not None:
            resources.push_async_callback(answers.close)
        client = ProviderClient(settings, pool, log)
        resources.push_async_callback(client.close)
        yield ChatModel(client, model or settings.providers.model, answers)
