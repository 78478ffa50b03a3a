"""Requests -> items: fetches what their URIs name, parses and cuts documents.

Called by `requests.stream` in its reading thread.
"""

import posixpath
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from threading import Event
from typing import TypeAlias

from vectorize_pipelines.core.guarded_http import ContentTooLargeError
from vectorize_pipelines.core.items import Item, JsonValue, Modality, content_hash
from vectorize_pipelines.core.notices import within
from vectorize_pipelines.core.retrying import growing_pauses, retry
from vectorize_pipelines.core.urls import is_data, other_spelling, stored_uri
from vectorize_pipelines.documents.cutting import Cutting
from vectorize_pipelines.documents.parsed_ahead import ParsedAhead
from vectorize_pipelines.documents.pool import ParserPool
from vectorize_pipelines.documents.types import MEMBER_SEPARATOR, ParsedDocument
from vectorize_pipelines.encoders import EncoderSpec
from vectorize_pipelines.encoders.configured import image_decoders
from vectorize_pipelines.errors import ItemError, SettingsError
from vectorize_pipelines.images.items import image_item
from vectorize_pipelines.messaging.messages import InlineDocument, Origin, Request, RequestItem, TaskType
from vectorize_pipelines.pipeline.requests.content_budget import ContentBudget
from vectorize_pipelines.pipeline.requests.growth import check_growth, items_growth
from vectorize_pipelines.pipeline.requests.named_models import UnusableModelError, failing_the_request
from vectorize_pipelines.pipeline.requests.pending import PendingRequest
from vectorize_pipelines.pipeline.requests.targets import Target
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.fetching import ContentMismatchError, Fetched, FetchPolicy, fetch_described

_ANNOUNCED = re.compile(
    r"#(?:(?P<algorithm>sha256|sha384|sha512|blake2b)=(?P<digest>[0-9A-Fa-f]{64,128}))?&?(?:size=(?P<size>\d{1,15}))?$",
    re.ASCII,
)

_HELD_SETTING = "uris.max_held_bytes (VECTORIZE_URIS__MAX_HELD_BYTES)"

#: URIs are fetched side by side: that waits more than it computes.
FETCHING_THREADS = 8
#: So many entries are under way, so that a slow one does not hold up all threads.
ENTRIES_AHEAD = 4 * FETCHING_THREADS

#: So much text of parsed documents may wait to be cut before no further one is parsed.
PARSED_AHEAD_BYTES = 64 * 2**20

#: Of a text nothing is fetched; of an image its bytes; of a document what the parser made of it.
_Content: TypeAlias = bytes | ParsedDocument | None


@dataclass(slots=True)
class _ItemReading:
    """An entry of a request that is being read.

    most       bytes that its content may have; 0 of a text, for which nothing is fetched
    content    what it is made of, from when that is fetched until it is an item
    set_aside  bytes of the budget for that
    place      among all contents that are fetched
    """

    pending: PendingRequest
    number: int
    most: int
    content: Future[_Content] | None = None
    set_aside: int = 0
    place: int = -1

    @property
    def item(self) -> RequestItem:
        return self.pending.request.items[self.number]


class RequestReader:
    """The making of requests' items: contents are fetched and parsed side by side. Closed by whoever made it.

    What the contents of requests take of `budget` is given back by whoever is done with the items.
    """

    def __init__(self, settings: Settings, budget: ContentBudget):
        self._settings = settings
        self._budget = budget
        self._policy = FetchPolicy.of(settings.uris)
        self._image_limits = settings.images.limits
        self._decoders = image_decoders(settings)
        self._parsers = ParserPool(settings.documents)
        self._threads = ThreadPoolExecutor(FETCHING_THREADS, thread_name_prefix="fetch")
        self._cuttings: dict[tuple[object, ...], Cutting] = {}
        self._closed = Event()
        self._places = count()
        self._ahead = ParsedAhead(PARSED_AHEAD_BYTES)

    def close(self) -> None:
        """End what is going on; a second call does nothing."""
        self._closed.set()
        self._budget.close()
        self._ahead.close()
        for cutting in list(self._cuttings.values()):
            cutting.interrupt()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._parsers.close()
        self._decoders.close()

    def has_room(self, pending: PendingRequest) -> bool:
        """Return whether the request could be read without waiting until others have been passed on."""
        return self._budget.has_room(sum(map(self._most, pending.request.items)))

    def read(self, requests: Sequence[PendingRequest]) -> Iterator[PendingRequest]:
        """Give each its items, or its error, one after the other. `ItemError`s fail the one request that they are of.

        Yields a request where no more can be read before it and those before it have been passed on, since they hold
        all the content that the run may hold.
        """
        waiting = deque(
            _ItemReading(pending, number, self._most(item))
            for pending in requests
            for number, item in enumerate(pending.request.items)
        )
        begun: deque[_ItemReading] = deque()
        read: PendingRequest | None = None
        while waiting or begun:
            while waiting and len(begun) < ENTRIES_AHEAD and self._begin(waiting[0]):
                begun.append(waiting.popleft())
            if begun:
                entry = begun.popleft()
                self._finish(entry)
                if entry.number + 1 == len(entry.pending.request.items):
                    read = entry.pending
            elif read is not None:
                yield read
                read = None
            else:
                self._begin_with_what_is_left(waiting[0])
                begun.append(waiting.popleft())

    def _begin(self, entry: _ItemReading) -> bool:
        """Have the entry's content fetched, unless there is no room for it now."""
        if entry.pending.error is not None or entry.item.modality is Modality.TEXT:
            return True
        if not self._budget.take(entry.most):
            return False
        self._fetch(entry, entry.most)
        return True

    def _begin_with_what_is_left(self, entry: _ItemReading) -> None:
        """Wait until there is room, but not for what the entry's own request holds. Raises `CancelledError`."""
        self._fetch(entry, self._budget.take_when_left(entry.most, entry.pending.held_bytes))

    def _fetch(self, entry: _ItemReading, size: int) -> None:
        entry.set_aside = size
        entry.place = next(self._places)
        entry.content = self._threads.submit(self._content, entry.item, size, entry.place)

    def _fail(self, pending: PendingRequest, error: ItemError) -> None:
        self._budget.give_back(pending.held_bytes)
        pending.forget_items()
        pending.fail(error)

    def _most(self, item: RequestItem) -> int:
        if item.modality is Modality.TEXT:
            return 0
        if isinstance(item.content, InlineDocument):
            return len(item.content.content)
        images = item.modality is Modality.IMAGE
        limit = self._image_limits.max_bytes if images else self._settings.documents.max_file_bytes
        size = announced(item.content)[2]
        if size is None and is_data(item.content):
            size = len(item.content)
        return min(limit if size is None else min(limit, size), self._policy.max_bytes, self._budget.most)

    def _too_large(self, item: RequestItem, limit: int, error: ContentTooLargeError) -> ItemError:
        """The error for a content that has more bytes than were set aside for it."""
        if limit < self._most(item):
            return ContentTooLargeError(
                f"the contents of the request are more than {self._budget.most:,} bytes together: send it in several "
                f"requests, or raise {_HELD_SETTING}"
            )
        if limit == self._budget.most:
            return ContentTooLargeError(f"is more than the {limit:,} bytes that a run may hold: raise {_HELD_SETTING}")
        size = announced(item.content)[2] if isinstance(item.content, str) else None
        return ContentMismatchError(f"is more than the {size:,} bytes that were announced") if size == limit else error

    def _content(self, item: RequestItem, limit: int, place: int) -> _Content:
        """Fetch at most `limit` bytes, and parse them. Raises `ItemError`; what may pass is tried again."""
        fetched = self._fetched(item, limit)
        if item.modality is Modality.IMAGE:
            return fetched.content
        self._ahead.wait(place)
        parsed = self._parsers.submit(fetched.name, content=fetched.content, media_type=fetched.media_type)
        document = parsed.result().document
        self._ahead.hold(document)
        return document

    def _fetched(self, item: RequestItem, limit: int) -> Fetched:
        if isinstance(item.content, InlineDocument):
            return _inline(item.content)
        uri, checksum, size = announced(item.content)
        if not limit and self._most(item):
            raise self._too_large(item, limit, ContentTooLargeError("there is no room for it"))
        drain = self._settings.kafka.drain
        try:
            return retry(
                partial(fetch_described, uri, self._policy, limit=limit, checksum=checksum, size=size),
                islice(growing_pauses(drain.retry_seconds), drain.attempts - 1),
                lambda error: isinstance(error, ItemError) and error.retryable,
                sleep=self._sleep,
            )
        except ContentTooLargeError as error:
            raise self._too_large(item, limit, error) from None

    def _sleep(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise CancelledError

    def _finish(self, entry: _ItemReading) -> None:
        """Add the rows of an entry to its request, or fail that."""
        pending, item, target = entry.pending, entry.item, entry.pending.target
        assert target is not None, "requests get their targets before their items"
        if pending.error is not None:
            self._abandon(entry)
            return
        before, held = pending.held_bytes, 0
        content: _Content = None
        try:
            _check_model(item, target.spec)
            self._ahead.await_(entry.place)
            content = None if entry.content is None else entry.content.result()
            self._add(pending, target, entry.number, content)
            held = pending.held_bytes - before
        except ItemError as error:
            several = len(pending.request.items) > 1
            self._fail(pending, type(error)(f"data[{entry.number}]: {error}") if several else error)
        finally:
            entry.content = None
            self._budget.give_back(entry.set_aside - held)
            self._release(content)

    def _release(self, content: _Content) -> None:
        self._ahead.release(content if isinstance(content, ParsedDocument) else None)

    def _abandon(self, entry: _ItemReading) -> None:
        """Give an entry up whose request has failed; what is being fetched is held until that has ended."""
        if entry.content is not None:
            entry.content.cancel()
            self._ahead.await_(entry.place)
            entry.content.add_done_callback(partial(self._abandoned, entry.set_aside))
            entry.content = None

    def _abandoned(self, size: int, content: Future[_Content]) -> None:
        self._budget.give_back(size)
        if not content.cancelled() and content.exception() is None:
            self._release(content.result())

    def _add(self, pending: PendingRequest, target: Target, number: int, content: _Content) -> None:
        """Add the rows of one entry of the request; all are numbered through, from 0."""
        item = pending.request.items[number]
        if item.modality is Modality.TEXT:
            self._add_text(pending, target, str(item.content))
        elif item.modality is Modality.IMAGE:
            assert isinstance(content, bytes), "it was fetched"
            pending.add([self._image_item(pending, item, content)], target.spec.fingerprint)
        else:
            assert isinstance(content, ParsedDocument), "it was parsed"
            several = len(pending.request.items) > 1
            notices = content.notices
            pending.notices += within(f"data[{number}]", notices) if several else notices
            self._add_document(pending, target, item, content)

    def _add_text(self, pending: PendingRequest, target: Target, text: str) -> None:
        """Add a text as one row, or as its passages where it is to be cut and has several."""
        whole = _text_item(pending, text)
        if self._is_cut(pending.request):
            passages = self._cut(
                pending, target, ParsedDocument(text, {}), whole.uri, pending.request.metadata, Modality.TEXT
            )
            if len(passages) > 1:
                self._add_passages(pending, target, passages)
                return
            whole = replace(whole, tokens=sum(passage.tokens for passage in passages))
        pending.add([whole], target.spec.fingerprint)

    def _is_cut(self, request: Request) -> bool:
        if request.task_type is not TaskType.TEXT:
            return False
        return self._settings.documents.chunk_long_texts if request.chunk is None else request.chunk

    def _image_item(self, pending: PendingRequest, item: RequestItem, content: bytes) -> Item:
        return image_item(
            content,
            content_hash(content),
            self._decoders,
            source_id=pending.request.task_id,
            uri=self._uri(pending, item) or "",
            occurred_at=pending.occurred_at,
            index=len(pending.items),
            metadata={"name": _name(pending, item), **pending.request.metadata},
        )

    def _add_document(
        self, pending: PendingRequest, target: Target, item: RequestItem, content: ParsedDocument
    ) -> None:
        metadata = {**_own_metadata(item.content), **pending.request.metadata}
        uri = self._uri(pending, item)
        self._add_passages(pending, target, self._cut(pending, target, content, uri, metadata, Modality.DOCUMENT))

    def _cut(
        self,
        pending: PendingRequest,
        target: Target,
        content: ParsedDocument,
        uri: str | None,
        metadata: Mapping[str, JsonValue],
        modality: Modality,
    ) -> list[Item]:
        with failing_the_request(target.model, own=target.own):  # its tokenizer cuts the document
            return self._cutting(target).items(
                content,
                source_id=pending.request.task_id,
                uri=uri,
                occurred_at=pending.occurred_at,
                first_index=len(pending.items),
                metadata=metadata,
                modality=modality,
            )

    def _add_passages(self, pending: PendingRequest, target: Target, items: Sequence[Item]) -> None:
        """Add the passages of a document or text. Raises `RequestGrowthError` for more than a request may have."""
        growth = items_growth(items, target.spec.dimension)
        rows, most = len(pending.items) + len(items), self._settings.kafka.drain.batch_bytes
        check_growth(rows, pending.held_bytes + growth, most)
        pending.add(items, self._cutting(target).model, growth)

    def _uri(self, pending: PendingRequest, item: RequestItem) -> str | None:
        """The address of an entry's content: its own, or the message where the content is in that.

        The address is as records keep it: whatever signs it is left out, unless the settings say otherwise. It is
        never the request's id: what is called by its own address is a file that this installation lists itself, and
        read again without the rules for what others name (`sources.rereading`).
        """
        if not isinstance(item.content, str) or is_data(item.content):
            return _place(pending)
        uri = stored_uri(announced(item.content)[0], keep_query=self._settings.uris.keep_query)
        return _not_its_id(pending, uri)

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
    """The address at which a message can be read again; None for a request that was no message."""
    return f"kafka://{origin.topic}/{origin.partition}/{origin.offset}" if origin.topic else None


def _place(pending: PendingRequest) -> str | None:
    uri = place_uri(pending.request.origin)
    return None if uri is None else _not_its_id(pending, uri)


def _not_its_id(pending: PendingRequest, uri: str) -> str:
    """The URI, or another spelling of it where the request is called by it."""
    task_id = pending.request.task_id
    is_called_so = uri == task_id or uri.startswith(f"{task_id}{MEMBER_SEPARATOR}")
    return other_spelling(uri) if is_called_so else uri


def _text_item(pending: PendingRequest, text: str) -> Item:
    return Item(
        source_id=pending.request.task_id,
        item_index=len(pending.items),
        modality=Modality.TEXT,
        text=text,
        uri=_place(pending),
        content_hash=content_hash(text),
        occurred_at=pending.occurred_at,
        start=0,
        end=len(text),
        metadata=pending.request.metadata,
    )


def _own_metadata(content: "str | InlineDocument") -> dict[str, JsonValue]:
    if not isinstance(content, InlineDocument):
        return {}
    return {**({"title": content.title} if content.title else {}), **content.metadata}


def _name(pending: PendingRequest, item: RequestItem) -> str:
    """The last part of an image's address; never of its query, which may be a signature."""
    if isinstance(item.content, str) and not is_data(item.content):
        return posixpath.basename(stored_uri(announced(item.content)[0], keep_query=False))
    return posixpath.basename(place_uri(pending.request.origin) or "")


def _inline(document: InlineDocument) -> Fetched:
    """The content of a message as if it had been fetched. Text has the one encoding that it is given here."""
    if isinstance(document.content, bytes):
        return Fetched(document.content, document.content_type, document.name)
    content = document.content.encode("utf-8", "surrogatepass")
    return Fetched(content, f"{document.content_type}; charset=utf-8", document.name)
