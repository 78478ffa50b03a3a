"""Requests -> items: which collection and model each is for, and what its URIs and documents hold.

Called by `pipeline.request_stream` in its reading thread.
"""

import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from vectorize_pipelines import home
from vectorize_pipelines.documents.pool import ParserPool
from vectorize_pipelines.encoders import EncoderSpec, describe_model
from vectorize_pipelines.errors import (
    CollectionNotFoundError,
    ItemError,
    ModelMismatchError,
    SettingsError,
    UnknownModelError,
)
from vectorize_pipelines.generations import InForce, in_force
from vectorize_pipelines.images.decoding import ImageLimits
from vectorize_pipelines.items import Item, JsonValue, Modality, content_hash
from vectorize_pipelines.messaging.messages import InlineDocument, Origin, ReceivedMessage, Request, RequestItem
from vectorize_pipelines.pipeline.documents import Cutting
from vectorize_pipelines.pipeline.images import image_item
from vectorize_pipelines.pipeline.switching import settle
from vectorize_pipelines.request_state import RequestState
from vectorize_pipelines.settings import COLLECTION_CHARACTERS, Settings
from vectorize_pipelines.sources.fetching import FetchPolicy, fetch
from vectorize_pipelines.stores.protocol import VectorStore, model_slug

_ANNOUNCED = re.compile(
    r"#(?:(?P<algorithm>sha256|sha384|sha512|blake2b)=(?P<digest>[0-9A-Fa-f]{64,128}))?&?(?:size=(?P<size>\d{1,15}))?$",
    re.ASCII,
)

#: The last day of the year 9999, after which Python has no times.
LATEST_MS = 253_402_214_400_000
#: URIs are fetched side by side: that waits more than it computes.
FETCHING_THREADS = 8


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
    state: RequestState = RequestState.PROCESSING
    error: ItemError | None = None
    vectors: int = 0

    def fail(self, error: ItemError) -> None:
        """Ends the request: nothing of it is written, what the store has of an earlier version stays."""
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


class RequestReader:
    """Makes the items of requests: fetches, parses and cuts side by side. Closed by whoever made it."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._policy = FetchPolicy.of(settings.uris)
        self._image_limits = ImageLimits(settings.images.max_file_bytes, settings.images.max_pixels)
        self._parsers = ParserPool(settings.documents)
        self._threads = ThreadPoolExecutor(FETCHING_THREADS, thread_name_prefix="fetch")
        self._cuttings: dict[tuple[object, ...], Cutting] = {}

    def close(self) -> None:
        """Ends what is going on; a second call does nothing."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._parsers.close()

    def read(self, works: Iterable[Work]) -> None:
        """Gives each its items, or its error. `ItemError`s fail the one request that they are of."""
        reading = [(work, self._begin(work.request.items)) for work in works]
        for work, contents in reading:
            try:
                self._finish(work, contents)
            except ItemError as error:
                work.fail(error)

    def _begin(self, items: Sequence[RequestItem]) -> "list[Future[bytes] | None]":
        """The contents that have to be fetched, on their way."""
        return [None if item.modality is Modality.TEXT else self._threads.submit(self._content, item) for item in items]

    def _content(self, item: RequestItem) -> bytes:
        """An image's or a document's bytes. Raises `ItemError`; what may pass is tried again."""
        if isinstance(item.content, InlineDocument):
            content = item.content.content
            return content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        images = item.modality is Modality.IMAGE
        limit = self._image_limits.max_bytes if images else self._settings.documents.max_file_bytes
        uri, checksum, size = announced(item.content)
        drain = self._settings.kafka.drain
        for attempt in range(1, drain.attempts + 1):
            try:
                return fetch(uri, self._policy, limit=limit, checksum=checksum, size=size)
            except ItemError as error:
                if not error.retryable or attempt == drain.attempts:
                    raise
            time.sleep(drain.retry_seconds * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")

    def _finish(self, work: Work, contents: "Sequence[Future[bytes] | None]") -> None:
        assert work.target is not None, "requests get their targets before their items"
        request, spec = work.request, work.target.spec
        for number, (item, content) in enumerate(zip(request.items, contents, strict=True)):
            try:
                _check_model(item, spec)
                self._add(work, item, b"" if content is None else content.result())
            except ItemError as error:
                if len(request.items) == 1:
                    raise
                raise type(error)(f"data[{number}]: {error}") from error

    def _add(self, work: Work, item: RequestItem, content: bytes) -> None:
        """Adds the rows of one entry of the request; all are numbered through, from 0."""
        assert work.target is not None, "requests get their targets before their items"
        request, origin = work.request, work.request.origin
        at, occurred_at, index = place_uri(origin), work.occurred_at, len(work.items)
        if item.modality is Modality.TEXT:
            text = str(item.content)
            work.items.append(_text_item(request, text, index, at, occurred_at))
            work.models.append(work.target.spec.fingerprint)
            return
        named = isinstance(item.content, str) and not item.content.startswith("data:")
        uri = announced(str(item.content))[0] if named else at
        if item.modality is Modality.IMAGE:
            work.items.append(
                image_item(
                    content,
                    content_hash(content),
                    self._image_limits,
                    source_id=request.task_id,
                    uri=uri or "",
                    occurred_at=occurred_at,
                    index=index,
                    metadata=request.metadata,
                )
            )
            work.models.append(work.target.spec.fingerprint)
            return
        cutting = self._cutting(work.target)
        parsed = self._parsers.submit(_file_name(item.content), content=content).result().document
        assert parsed is not None, "no content is known beforehand"
        items = cutting.items(
            parsed,
            source_id=request.task_id,
            uri=uri,
            occurred_at=occurred_at,
            first_index=index,
            metadata={**_own_metadata(item.content), **request.metadata},
        )
        work.items.extend(items)
        work.models.extend([cutting.model] * len(items))

    def _cutting(self, target: Target) -> Cutting:
        key = (target.model, target.dimension, target.limits)
        if key not in self._cuttings:
            try:
                self._cuttings[key] = Cutting(
                    self._settings, target.model, dimension=target.dimension, limits=target.limits
                )
            except SettingsError as error:  # the chunk length does not fit this model
                raise UnusableModelError(str(error)) from error
        return self._cuttings[key]


def _check_model(item: RequestItem, spec: EncoderSpec) -> None:
    wanted = Modality.IMAGE if item.modality is Modality.IMAGE else Modality.TEXT
    if wanted not in spec.modalities:
        takes = ", ".join(sorted(spec.modalities))
        raise UnusableModelError(f"{spec.name} takes {takes}, not {wanted}: name another model in model_name")


def announced(uri: str) -> tuple[str, str | None, int | None]:
    """A URI without what its fragment announces of the content: `#sha256=HEX&size=BYTES`, either or both.

    Gives the checksum as `sources.fetching.fetch` takes it, and the size in bytes.
    """
    found = _ANNOUNCED.search(uri)
    if found is None:
        return uri, None, None
    checksum = f"{found['algorithm']}:{found['digest'].lower()}" if found["digest"] else None
    return uri[: found.start()], checksum, int(found["size"]) if found["size"] else None


def occurred(origin: Origin) -> datetime:
    """The message's own time; 1970 or the year 9999 for one outside of them, which a sender may have written there."""
    return datetime.fromtimestamp(min(max(origin.timestamp_ms, 0), LATEST_MS) / 1000, UTC)


def place_uri(origin: Origin) -> str | None:
    """Where a message can be read again; None for a request that was no message."""
    return f"kafka://{origin.topic}/{origin.partition}/{origin.offset}" if origin.topic else None


def _text_item(request: Request, text: str, index: int, uri: str | None, occurred_at: datetime) -> Item:
    return Item(
        source_id=request.task_id,
        item_index=index,
        modality=Modality.TEXT,
        text=text,
        uri=uri,
        content_hash=content_hash(text),
        occurred_at=occurred_at,
        start=0,
        end=len(text),
        metadata=request.metadata,
    )


def _own_metadata(content: "str | InlineDocument") -> dict[str, JsonValue]:
    if not isinstance(content, InlineDocument):
        return {}
    return {**({"title": content.title} if content.title else {}), **content.metadata}


def _file_name(content: "str | InlineDocument") -> str:
    """A name whose ending tells the parser the format."""
    if isinstance(content, InlineDocument):
        return f"document{content.suffix}"
    return content.partition("?")[0].partition("#")[0]
