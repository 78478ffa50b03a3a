"""Requests on their way through a run, and which collection and model each is for.

`pipeline.request_stream` makes a `Work` of every request and asks `Targets` in its reading thread; `request_reader`
gives the work its items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from vectorize_pipelines import home
from vectorize_pipelines.encoders import EncoderSpec, describe_model
from vectorize_pipelines.errors import (
    CollectionNotFoundError,
    ItemError,
    ModelMismatchError,
    UnknownModelError,
)
from vectorize_pipelines.generations import InForce, in_force
from vectorize_pipelines.items import Item, Modality
from vectorize_pipelines.messaging.messages import Origin, ReceivedMessage, Request
from vectorize_pipelines.pipeline.switching import settle
from vectorize_pipelines.request_state import RequestState
from vectorize_pipelines.settings import COLLECTION_CHARACTERS, Settings
from vectorize_pipelines.stores.protocol import VectorStore, model_slug

#: The last day of the year 9999, after which Python has no times.
LATEST_MS = 253_402_214_400_000


class UnusableModelError(ItemError):
    """The model that a request names cannot be had, or does not take what the request holds."""


class UnusableCollectionError(ItemError):
    """The collection that a request names cannot take it: its name, or the model that it holds."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request's rows go, and by which model.

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


@dataclass(slots=True, eq=False)
class Work:
    """A valid request on its way to its end.

    message   as it came; None for a request that was no message
    day       the partition of its rows
    occurred_at, started_at   its own time, and when it was taken up
    target    None until it is known
    models    of each item, the fingerprint that its record carries
    held_bytes  of fetched contents and of the texts made of them, in its items
    vectors   rows that the store has of it at the end
    """

    request: Request
    message: ReceivedMessage | None
    day: str
    occurred_at: datetime
    started_at: datetime
    target: Target | None = None
    items: list[Item] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    held_bytes: int = 0
    state: RequestState = RequestState.PROCESSING
    error: ItemError | None = None
    vectors: int = 0

    def add(self, items: Sequence[Item], model: str) -> None:
        """Appends items, all of them for the same model."""
        self.items.extend(items)
        self.models.extend([model] * len(items))
        self.held_bytes += sum(_held(item) for item in items)

    def forget_items(self) -> None:
        """The items are not needed: the request has failed, or has been acknowledged."""
        self.items, self.models, self.held_bytes = [], [], 0

    def fail(self, error: ItemError) -> None:
        """Ends the request: nothing of it is written, what the store has of an earlier version stays."""
        # Its trace would keep what its functions had in hand, the request's contents among it.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self.state, self.error = RequestState.FAILED, error

    @property
    def collection(self) -> str | None:
        """Where its rows go, as far as that is known."""
        return self.target.collection if self.target is not None else self.request.collection


class Targets:
    """Finds the collection and the model of requests, and creates collections; remembers what it found.

    A request that names no model is embedded by that of its collection, or, where there is none yet, by the
    settings' for its modality. One that names another model but no collection goes to a collection of that model's:
    the modality's, `-` and the model's name.
    """

    def __init__(self, settings: Settings, store: VectorStore, modality: Modality):
        self._settings = settings
        self._store = store
        self._modality = modality
        self._found: dict[tuple[str | None, str | None], Target | ItemError] = {}

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
        """Raises `ItemError` where what the request names cannot be had, other errors where the settings' cannot."""
        key = (request.collection, request.model_name)
        if key not in self._found:
            try:
                self._found[key] = self._find(request)
            except ItemError as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, ItemError):
            raise type(found)(*found.args)
        return found

    def _find(self, request: Request) -> Target:
        self._check_allowed(request)
        named = request.collection is not None or request.model_name is not None
        try:
            collection, now = self._names(request)
            spec = describe_model(now.model, dimension=now.dimension, cache_directory=home.model_cache(self._settings))
        except UnknownModelError as error:
            if request.model_name is None:
                raise
            raise UnusableModelError(f"model_name: {error}") from error
        try:
            physical = self._store.ensure_collection(collection, spec).physical
        except ModelMismatchError as error:
            if not named:
                raise
            raise UnusableCollectionError(f"collection: {error}") from error
        return Target(collection, physical, now.model, now.dimension, now.limits, spec)

    def _check_allowed(self, request: Request) -> None:
        """Of a model that anybody may name the first run has to ask the hub."""
        allowed, models = self._settings.kafka.allowed_models, self._settings.models
        if allowed and request.model_name not in (None, *allowed, models.text, models.image):
            raise UnusableModelError(
                f"model_name: {request.model_name} is not among kafka.allowed_models (VECTORIZE_KAFKA__ALLOWED_MODELS)"
            )

    def _names(self, request: Request) -> tuple[str, InForce]:
        """The collection, and what it is embedded with."""
        default = self.default_collection
        if request.collection is None and request.model_name not in (None, self.default_model):
            assert request.model_name is not None, "None is among those that were left out"
            collection = f"{default}-{model_slug(request.model_name)}"[:COLLECTION_CHARACTERS].rstrip("-")
        else:
            collection = request.collection or default
        settle(self._settings, self._store, collection)
        model = request.model_name or self._model_of(collection) or self.default_model
        dimension = self._settings.models.dimension if model == self._settings.models.text else None
        return collection, in_force(
            self._settings, collection, request.model_name or "", InForce(model=model, dimension=dimension)
        )

    def _model_of(self, collection: str) -> str | None:
        try:
            return self._store.collection(collection).model
        except CollectionNotFoundError:
            return None


def _held(item: Item) -> int:
    if item.modality is Modality.TEXT:  # which came with its message
        return 0
    return len(item.content if isinstance(item.content, bytes) else item.text or "")


def occurred(origin: Origin) -> datetime:
    """The message's own time; 1970 or the year 9999 for one outside of them, which a sender may have written there."""
    return datetime.fromtimestamp(min(max(origin.timestamp_ms, 0), LATEST_MS) / 1000, UTC)
