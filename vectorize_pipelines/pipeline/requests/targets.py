"""Which collection and model each request is for.

`stream` asks `Targets` in its reading thread, `encoding` has it wait for the hub in its own.
"""

import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from itertools import islice
from threading import Event
from typing import TypeVar

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.retrying import growing_pauses, retry
from vectorize_pipelines.encoders import EncoderSpec, describe_model
from vectorize_pipelines.encoders.configured import describe_options
from vectorize_pipelines.errors import CollectionNotFoundError, ItemError, ModelMismatchError
from vectorize_pipelines.messaging.messages import Request
from vectorize_pipelines.pipeline.aliases import current_embedding_config
from vectorize_pipelines.pipeline.requests.named_models import (
    NamedModels,
    UnusableModelError,
    failing_the_request,
    may_pass,
    same_model,
)
from vectorize_pipelines.settings import COLLECTION_CHARACTERS, Settings
from vectorize_pipelines.state.generations import EmbeddingConfig
from vectorize_pipelines.stores.base import VectorStore, model_slug

#: So long what a request named is not looked for again: it is the same answer, and looking may take long.
REFUSED_SECONDS = 60.0
MOST_REFUSED = 1000

Result = TypeVar("Result")


class UnusableCollectionError(ItemError):
    """The collection that a request names cannot take it: its name, or the model that it holds."""


@dataclass(frozen=True, slots=True)
class Target:
    """The collection of a request's rows, and its model.

    own        whether the model is the settings' for the run's modality: where it cannot be loaded the run fails
    physical   what stood behind the collection's name when the run looked: the one that holds this model's vectors
    dimension  None is the model's own
    limits     longest passage of a document and overlap, in tokens; None: as the settings say
    """

    collection: str
    physical: str
    model: str
    dimension: int | None
    limits: tuple[int, int] | None
    spec: EncoderSpec
    own: bool = False


class Targets:
    """The collections and models of requests: found, created where they are missing, and remembered.

    A request that names no model is embedded by that of its collection, or, where there is none yet, by the
    settings' for its modality. One that names another model but no collection goes to a collection of that model's:
    the modality's, `-` and the model's name.
    """

    def __init__(self, settings: Settings, store: VectorStore, modality: Modality):
        self._settings = settings
        self._store = store
        self._modality = modality
        self._models = NamedModels(settings, store)
        self._closed = Event()
        self._hub_asked_from = float("-inf")
        self._found: dict[tuple[str | None, str | None], Target] = {}
        self._refused: dict[tuple[str | None, str | None], tuple[ItemError, float]] = {}

    def close(self) -> None:
        """End waiting for the hub; a second call does nothing."""
        self._closed.set()

    @property
    def default_collection(self) -> str:
        """The collection of requests that name neither collection nor model."""
        return self._settings.kafka.collection(self._modality)

    @property
    def default_model(self) -> str:
        """The settings' model of this modality."""
        models = self._settings.models
        return models.image if self._modality is Modality.IMAGE else models.text

    def of(self, request: Request) -> Target:
        """Find a request's target. Raises `ItemError` for what it names and cannot be had, others for the settings'.

        What cannot be had is not looked for again for a while. Raises `CancelledError` once closed.
        """
        key = (request.collection, request.model_name)
        if key in self._found:
            return self._found[key]
        refused, since = self._refused.get(key, (None, 0.0))
        if refused is not None and time.monotonic() - since < REFUSED_SECONDS:
            raise type(refused)(*refused.args)
        try:
            self._found[key] = self.retry(partial(self._find, request))
        except ItemError as error:
            if len(self._refused) >= MOST_REFUSED:
                self._refused.clear()
            self._refused[key] = type(error)(*error.args), time.monotonic()
            raise
        return self._found[key]

    def retry(self, call: Callable[[], Result]) -> Result:
        """Return the result of a call, made again where the hub is away, as often as the settings say.

        Then models that would have to be fetched are refused for a while, without asking the hub. Called from any
        thread. Raises `CancelledError` once closed.
        """
        drain = self._settings.kafka.drain
        try:
            return retry(
                call,
                islice(growing_pauses(drain.retry_seconds), drain.attempts - 1),
                lambda error: isinstance(error, UnusableModelError) and may_pass(error) and self._hub_is_asked(),
                sleep=self._sleep,
            )
        except UnusableModelError as error:
            if may_pass(error):
                self._hub_asked_from = time.monotonic() + REFUSED_SECONDS
            raise

    def _sleep(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise CancelledError

    def _hub_is_asked(self) -> bool:
        """Return whether the hub is worth asking: each request that waits for it keeps those behind it waiting."""
        return time.monotonic() >= self._hub_asked_from

    def _find(self, request: Request) -> Target:
        name = request.model_name
        source = None
        if name is not None:
            with failing_the_request(name, own=False):
                source = self._models.resolve(name, request.collection)
        named = request.collection is not None or name is not None
        collection, now = self._names(request)
        model = source or now.model
        own = same_model(model, self.default_model)
        with failing_the_request(model, own=own):
            fetch = own or self._hub_is_asked()
            spec = describe_model(model, dimension=now.dimension, fetch=fetch, **describe_options(self._settings))
        try:
            physical = self._store.ensure_collection(collection, spec).physical
        except ModelMismatchError as error:
            if not named:
                raise
            raise UnusableCollectionError(f"collection: {error}") from error
        return Target(collection, physical, model, now.dimension, now.limits, spec, own)

    def _names(self, request: Request) -> tuple[str, EmbeddingConfig]:
        """The collection, and what it is embedded with."""
        default = self.default_collection
        if request.collection is None and request.model_name not in (None, self.default_model):
            assert request.model_name is not None, "None is among those that were left out"
            collection = f"{default}-{model_slug(request.model_name)}"[:COLLECTION_CHARACTERS].rstrip("-")
        else:
            collection = request.collection or default
        model = request.model_name or self._model_of(collection) or self.default_model
        dimension = self._settings.models.dimension if model == self._settings.models.text else None
        new = EmbeddingConfig(model=model, dimension=dimension)
        return collection, current_embedding_config(
            self._settings, self._store, collection, request.model_name or "", new
        )

    def _model_of(self, collection: str) -> str | None:
        try:
            return self._store.collection(collection).model
        except CollectionNotFoundError:
            return None
