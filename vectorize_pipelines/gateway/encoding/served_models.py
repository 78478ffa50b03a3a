"""The models that clients of the HTTP server may name. Called by the routes of embeddings."""

from collections.abc import Callable

import anyio
from anyio import to_thread

from vectorize_pipelines.errors import ItemError, UnknownModelError
from vectorize_pipelines.pipeline.requests.named_models import ANY, NamedModels, Spellings
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.stores.base import VectorStore


class UnservedModelError(UnknownModelError):
    """A client has named a model that the operator uses nowhere."""


class ServedModels:
    """The models of the settings, of `kafka.allowed_models` and of existing collections, by any of their names.

    The rule is that of requests over Kafka, but for the `*` that lets these have models from wherever: a client of the
    HTTP server that may only read has nothing fetched and loaded by naming it.

    store  opens the store, or returns the one that is open; called in a thread
    """

    def __init__(self, settings: Settings, store: Callable[[], VectorStore]) -> None:
        allowed = tuple(name for name in settings.kafka.allowed_models if name != ANY)
        kafka = settings.kafka.model_copy(update={"allowed_models": allowed})
        self._settings = settings.model_copy(update={"kafka": kafka})
        self._given = tuple(dict.fromkeys((settings.models.text, settings.models.image, *allowed)))
        self._spellings = Spellings(self._given)
        self._open_store = store
        self._rule: NamedModels | None = None
        self._one_at_a_time = anyio.CapacityLimiter(1)

    async def resolve(self, name: str) -> str:
        """Return the name by which a model is loaded. Raises `UnservedModelError` and `StoreError`.

        The store is asked only for a model that the operator did not name.
        """
        given = self._spellings.of(name)
        if given is not None:
            return given
        return await to_thread.run_sync(self._of_a_collection, name, limiter=self._one_at_a_time)

    async def names(self) -> list[str]:
        """Return the names of all of them, the settings' models first. Raises `StoreError`."""
        return await to_thread.run_sync(self._names, limiter=self._one_at_a_time)

    def _names(self) -> list[str]:
        names = dict.fromkeys(self._given)
        for collection in self._open_store().collections():
            names.setdefault(self._spellings.of(collection.model) or collection.model)
        return list(names)

    def _of_a_collection(self, name: str) -> str:
        if self._rule is None:
            self._rule = NamedModels(self._settings, self._open_store())
        try:
            return self._rule.resolve(name, None)
        except ItemError:
            raise UnservedModelError(
                f"the model {name!r} is not served: it is neither one of the settings, nor of an existing collection, "
                "nor in kafka.allowed_models (VECTORIZE_KAFKA__ALLOWED_MODELS)"
            ) from None
