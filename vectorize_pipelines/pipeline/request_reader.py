"""Requests -> items: fetches what their URIs name, parses and cuts documents.

Called by `pipeline.request_stream` in its reading thread.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import TypeAlias

from vectorize_pipelines.documents.pool import ParserPool
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.encoders import EncoderSpec
from vectorize_pipelines.errors import ItemError, SettingsError
from vectorize_pipelines.guarded_http import ContentTooLargeError
from vectorize_pipelines.images.decoding import ImageLimits
from vectorize_pipelines.items import Item, JsonValue, Modality, content_hash
from vectorize_pipelines.messaging.messages import InlineDocument, Origin, RequestItem
from vectorize_pipelines.pipeline.content_budget import ContentBudget
from vectorize_pipelines.pipeline.documents import Cutting
from vectorize_pipelines.pipeline.images import image_item
from vectorize_pipelines.pipeline.requests import Target, UnusableModelError, Work
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.fetching import ContentMismatchError, FetchPolicy, fetch

_ANNOUNCED = re.compile(
    r"#(?:(?P<algorithm>sha256|sha384|sha512|blake2b)=(?P<digest>[0-9A-Fa-f]{64,128}))?&?(?:size=(?P<size>\d{1,15}))?$",
    re.ASCII,
)

_HELD_SETTING = "uris.max_held_bytes (VECTORIZE_URIS__MAX_HELD_BYTES)"

#: URIs are fetched side by side: that waits more than it computes.
FETCHING_THREADS = 8
#: So many entries are under way, so that a slow one does not hold up all threads.
ENTRIES_AHEAD = 4 * FETCHING_THREADS

#: Of a text nothing is fetched; of an image its bytes; of a document what the parser made of it.
_Content: TypeAlias = bytes | ParsedDocument | None


@dataclass(slots=True)
class _Entry:
    """An entry of a request on its way.

    most       bytes that its content may have; 0 of a text, for which nothing is fetched
    content    what it is made of, from when that is fetched until it is an item
    set_aside  bytes of the budget for that
    """

    work: Work
    number: int
    most: int
    content: Future[_Content] | None = None
    set_aside: int = 0

    @property
    def item(self) -> RequestItem:
        return self.work.request.items[self.number]


class RequestReader:
    """Makes the items of requests: fetches and parses side by side. Closed by whoever made it.

    What the contents of requests take of `budget` is given back by whoever is done with the items.
    """

    def __init__(self, settings: Settings, budget: ContentBudget):
        self._settings = settings
        self._budget = budget
        self._policy = FetchPolicy.of(settings.uris)
        self._image_limits = ImageLimits(settings.images.max_file_bytes, settings.images.max_pixels)
        self._parsers = ParserPool(settings.documents)
        self._threads = ThreadPoolExecutor(FETCHING_THREADS, thread_name_prefix="fetch")
        self._cuttings: dict[tuple[object, ...], Cutting] = {}
        self._closed = Event()

    def close(self) -> None:
        """Ends what is going on; a second call does nothing."""
        self._closed.set()
        self._budget.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._parsers.close()

    def read(self, works: Sequence[Work]) -> Iterator[Work]:
        """Gives each its items, or its error, one after the other. `ItemError`s fail the one request that they are of.

        Yields a request where no more can be read before it and those before it have been passed on, since they hold
        all the content that the run may hold.
        """
        waiting = deque(
            _Entry(work, number, self._most(item)) for work in works for number, item in enumerate(work.request.items)
        )
        begun: deque[_Entry] = deque()
        read: Work | None = None
        while waiting or begun:
            while waiting and len(begun) < ENTRIES_AHEAD and self._begin(waiting[0]):
                begun.append(waiting.popleft())
            if begun:
                entry = begun.popleft()
                self._finish(entry)
                if entry.number + 1 == len(entry.work.request.items):
                    read = entry.work
            elif read is not None:
                yield read
                read = None
            else:
                self._begin_with_what_is_left(waiting[0])
                begun.append(waiting.popleft())

    def _begin(self, entry: _Entry) -> bool:
        """Has the entry's content fetched, unless there is no room for it now."""
        if entry.work.error is not None or entry.item.modality is Modality.TEXT:
            return True
        if not self._budget.take(entry.most):
            return False
        self._fetch(entry, entry.most)
        return True

    def _begin_with_what_is_left(self, entry: _Entry) -> None:
        """Waits until there is room, but not for what the entry's own request holds. Raises `CancelledError`."""
        self._fetch(entry, self._budget.take_when_left(entry.most, entry.work.held_bytes))

    def _fetch(self, entry: _Entry, size: int) -> None:
        entry.set_aside = size
        entry.content = self._threads.submit(self._content, entry.item, size)

    def _fail(self, work: Work, error: ItemError) -> None:
        self._budget.give_back(work.held_bytes)
        work.forget_items()
        work.fail(error)

    def _most(self, item: RequestItem) -> int:
        if item.modality is Modality.TEXT:
            return 0
        if isinstance(item.content, InlineDocument):
            return len(item.content.content)
        images = item.modality is Modality.IMAGE
        limit = self._image_limits.max_bytes if images else self._settings.documents.max_file_bytes
        size = announced(item.content)[2]
        if size is None and item.content.startswith("data:"):
            size = len(item.content)
        return min(limit if size is None else min(limit, size), self._policy.max_bytes, self._budget.most)

    def _too_large(self, item: RequestItem, limit: int, error: ContentTooLargeError) -> ItemError:
        """What it means that a content has more bytes than were set aside for it."""
        if limit < self._most(item):
            return ContentTooLargeError(
                f"the contents of the request are more than {self._budget.most:,} bytes together: send it in several "
                f"requests, or raise {_HELD_SETTING}"
            )
        if limit == self._budget.most:
            return ContentTooLargeError(f"is more than the {limit:,} bytes that a run may hold: raise {_HELD_SETTING}")
        size = announced(item.content)[2] if isinstance(item.content, str) else None
        return ContentMismatchError(f"is more than the {size:,} bytes that were announced") if size == limit else error

    def _content(self, item: RequestItem, limit: int) -> _Content:
        """Of at most `limit` bytes. Raises `ItemError`; what may pass is tried again."""
        content = self._fetched(item, limit)
        if item.modality is Modality.IMAGE:
            return content
        return self._parsers.submit(_file_name(item.content), content=content).result().document

    def _fetched(self, item: RequestItem, limit: int) -> bytes:
        if isinstance(item.content, InlineDocument):
            content = item.content.content
            return content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        uri, checksum, size = announced(item.content)
        if not limit and self._most(item):
            raise self._too_large(item, limit, ContentTooLargeError("there is no room for it"))
        drain = self._settings.kafka.drain
        for attempt in range(1, drain.attempts + 1):
            try:
                return fetch(uri, self._policy, limit=limit, checksum=checksum, size=size)
            except ContentTooLargeError as error:
                raise self._too_large(item, limit, error) from None
            except ItemError as error:
                if not error.retryable or attempt == drain.attempts:
                    raise
            if self._closed.wait(drain.retry_seconds * 2 ** (attempt - 1)):
                raise CancelledError
        raise AssertionError("the last attempt returns or raises")

    def _finish(self, entry: _Entry) -> None:
        """Adds the rows of an entry to its request, or fails that."""
        work, item = entry.work, entry.item
        assert work.target is not None, "requests get their targets before their items"
        if work.error is not None:
            self._abandon(entry)
            return
        before, held = work.held_bytes, 0
        try:
            _check_model(item, work.target.spec)
            self._add(work, item, None if entry.content is None else entry.content.result())
            held = work.held_bytes - before
        except ItemError as error:
            several = len(work.request.items) > 1
            self._fail(work, type(error)(f"data[{entry.number}]: {error}") if several else error)
        finally:
            entry.content = None
            self._budget.give_back(entry.set_aside - held)

    def _abandon(self, entry: _Entry) -> None:
        """Its request has failed meanwhile; what is being fetched is held until that has ended."""
        if entry.content is not None:
            size = entry.set_aside
            entry.content.cancel()
            entry.content.add_done_callback(lambda _: self._budget.give_back(size))
            entry.content = None

    def _add(self, work: Work, item: RequestItem, content: _Content) -> None:
        """Adds the rows of one entry of the request; all are numbered through, from 0."""
        assert work.target is not None, "requests get their targets before their items"
        if item.modality is Modality.TEXT:
            work.add([_text_item(work, str(item.content))], work.target.spec.fingerprint)
        elif item.modality is Modality.IMAGE:
            assert isinstance(content, bytes), "it was fetched"
            image = image_item(
                content,
                content_hash(content),
                self._image_limits,
                source_id=work.request.task_id,
                uri=_uri(work, item) or "",
                occurred_at=work.occurred_at,
                index=len(work.items),
                metadata=work.request.metadata,
            )
            work.add([image], work.target.spec.fingerprint)
        else:
            assert isinstance(content, ParsedDocument), "it was parsed"
            cutting = self._cutting(work.target)
            items = cutting.items(
                content,
                source_id=work.request.task_id,
                uri=_uri(work, item),
                occurred_at=work.occurred_at,
                first_index=len(work.items),
                metadata={**_own_metadata(item.content), **work.request.metadata},
            )
            work.add(items, cutting.model)

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


def place_uri(origin: Origin) -> str | None:
    """Where a message can be read again; None for a request that was no message."""
    return f"kafka://{origin.topic}/{origin.partition}/{origin.offset}" if origin.topic else None


def _uri(work: Work, item: RequestItem) -> str | None:
    """Where an entry's content can be read again: its own address, or the message where the content is in that."""
    if isinstance(item.content, str) and not item.content.startswith("data:"):
        return announced(item.content)[0]
    return place_uri(work.request.origin)


def _text_item(work: Work, text: str) -> Item:
    return Item(
        source_id=work.request.task_id,
        item_index=len(work.items),
        modality=Modality.TEXT,
        text=text,
        uri=place_uri(work.request.origin),
        content_hash=content_hash(text),
        occurred_at=work.occurred_at,
        start=0,
        end=len(text),
        metadata=work.request.metadata,
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
