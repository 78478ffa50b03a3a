"""The encoder of all HTTP requests: what many callers send is put together into calls that keep the cores busy.

    async with EncodingQueue(partial(lease_configured, settings), settings.gateway.max_waiting_texts) as encoding:
        vectors, tokens = await encoding.encode("sentence-transformers/all-MiniLM-L6-v2", ["a text"], "query")

However many requests there are, a few threads call the encoders, one more than there are cores; a thread for each
request would have them compete for the cores. Whoever of them is free takes what waits, at once: a request that is
alone does not wait for others, and while calls are under way those that come gather for the next ones. Small requests
go first, and one thread is kept for them; large ones are cut into parts, and each has one part in turn. Made by
`services`; called by the routes of embeddings and of search.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from http import HTTPStatus
from itertools import count
from types import TracebackType
from typing import Self, TypeAlias

import anyio.to_thread
import numpy as np

from vectorize_pipelines.encoders.base import Encoder, Purpose, Vectors
from vectorize_pipelines.encoders.hardware.machine import physical_cores
from vectorize_pipelines.encoders.truncation import cut
from vectorize_pipelines.errors import ItemError, ModelTooLargeError, VectorizeError
from vectorize_pipelines.gateway.encoding.lane import (
    Call,
    Content,
    DimensionError,
    Encoded,
    EncodingRequest,
    Lane,
    Share,
)
from vectorize_pipelines.gateway.problems import Problem

__all__ = ["Content", "DimensionError", "Encoded", "EncoderFailedError", "EncodingQueue"]

logger = logging.getLogger(__name__)

#: The use of the encoder of a model.
Lease: TypeAlias = Callable[[str], AbstractContextManager[Encoder]]

#: After so many calls for small requests, while large ones wait, comes one for these.
URGENT_IN_A_ROW = 4

#: Of the room for what waits, this part is kept for small requests.
URGENT_ROOM = 8

#: A model that nobody has used for so long may be unloaded, if the cache of encoders wants it.
KEEP_SECONDS = 60.0

#: Who is told to come later, is told so many seconds at the most; and this many while no rate is known.
LONGEST_RETRY_SECONDS, UNKNOWN_RETRY_SECONDS = 60, 5

#: The rate is that of about so many seconds of work.
RATE_SECONDS = 10.0


class EncoderFailedError(VectorizeError):
    """A loaded model failed for no reason that its caller could do anything about; the log of the server has it."""


class EncodingQueue:
    """Encodes for many callers at once. An async context manager, used by the event loop in which it was entered.

    lease         the encoder of a model, for as long as the context lasts
    most_waiting  contents that may wait; who brings more is told to come later
    calls         threads that call encoders; None: one more than there are cores
    keep_seconds  how long a model is held after its last call
    """

    def __init__(
        self, lease: Lease, most_waiting: int, *, calls: int | None = None, keep_seconds: float = KEEP_SECONDS
    ) -> None:
        self._lease = lease
        self._most_waiting = most_waiting
        self._keep_seconds = keep_seconds
        self._bulk_room = most_waiting - most_waiting // URGENT_ROOM
        threads = max(2, physical_cores()) + 1 if calls is None else calls
        self._bulk_threads = max(1, threads - 1)
        self._changed = threading.Condition()
        self._lanes: dict[str, Lane] = {}
        self._numbers = count()
        self._waiting = self._bulk_calls = self._urgent_in_a_row = 0
        self._rate = _Rate()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"encode-{number}", daemon=True) for number in range(threads)
        ]

    @property
    def waiting(self) -> int:
        """How many contents wait for an encoder."""
        return self._waiting

    async def encode(
        self, model: str, contents: Sequence[Content], purpose: Purpose = "document", dimension: int | None = None
    ) -> Encoded:
        """Return the vectors, of shape (n, dimension), in the order of the contents, and how many tokens each has.

        `dimension` None gives the model's own. Raises `ItemError` for what cannot be encoded, `DimensionError` for a
        dimension that the model has not, whatever loading the model raises, `EncoderFailedError`, and `Problem` where
        too much waits already. A caller that is cancelled takes back what has not been encoded.
        """
        if not contents:
            raise ItemError("there is nothing to encode")
        request = EncodingRequest(contents, purpose, dimension, asyncio.get_running_loop().create_future())
        lane = self._submit(model, request)
        try:
            return await request.answer
        except asyncio.CancelledError:
            with self._changed:
                self._withdraw(lane, request)
            raise

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Refuse what waits, and return when the calls under way have ended. A load is not waited for."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            loaded = [lane for lane in self._lanes.values() if lane.encoder is not None]
            refused = [(lane, request) for lane in self._lanes.values() for request in lane.waiting]
            for lane, request in refused:
                self._withdraw(lane, request)
        for _, request in refused:
            if not request.answer.done():
                request.answer.set_exception(_ending())
        await anyio.to_thread.run_sync(self._join)
        await anyio.to_thread.run_sync(_release, loaded)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()

    # What comes in

    def _submit(self, model: str, request: EncodingRequest) -> Lane:
        with self._changed:
            if self._closed:
                raise _ending()
            self._check_room(request)
            lane = self._lanes.get(model)
            if lane is None:
                lane = self._lanes[model] = Lane(model)
                threading.Thread(target=self._load, args=(lane,), name=f"load {model}", daemon=True).start()
            elif lane.encoder is not None:
                lane.check(request)
            request.number = next(self._numbers)
            lane.add(request)
            self._waiting += len(request.contents)
            self._changed.notify()
            return lane

    def _check_room(self, request: EncodingRequest) -> None:
        texts = len(request.contents)
        room = self._most_waiting if request.urgent else self._bulk_room
        if texts > room:
            raise Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{texts} texts are more than the {room} that may wait for the encoder: send fewer at once",
            )
        if self._waiting + texts > room:
            seconds = self._rate.seconds_for(self._waiting)
            wait = UNKNOWN_RETRY_SECONDS if seconds is None else max(1, min(LONGEST_RETRY_SECONDS, math.ceil(seconds)))
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{self._waiting} texts wait for the encoder already: try again in {wait} s",
                headers={"Retry-After": str(wait)},
            )

    def _withdraw(self, lane: Lane, request: EncodingRequest) -> None:
        """Forget a request; what a call has been given of it comes to nothing."""
        if not request.over:
            request.over = True
            self._waiting -= request.untaken
            lane.discard(request)

    # The threads

    def _work(self) -> None:
        while (task := self._next_task()) is not None:
            task()

    def _next_task(self) -> Callable[[], None] | None:
        """Return what a thread does next, once there is something; None at the end."""
        with self._changed:
            while not self._closed:
                call = self._next_call()
                if call is not None:
                    self._begin(call)
                    return partial(self._perform, call)
                unused = self._take_unused()
                if unused:
                    return partial(_release, unused)
                self._changed.wait(self._seconds_until_unused())
        return None

    def _next_call(self) -> Call | None:
        """Return the call that is due; None where nothing waits, or only what has to wait for its turn."""
        urgent = [lane for lane in self._lanes.values() if lane.urgent_due]
        bulk = [lane for lane in self._lanes.values() if lane.bulk_due] if self._bulk_calls < self._bulk_threads else []
        if bulk and (not urgent or self._urgent_in_a_row >= URGENT_IN_A_ROW):
            self._urgent_in_a_row = 0
            return min(bulk, key=lambda lane: lane.bulk[0].number).take_bulk(next(self._numbers))
        if not urgent:
            return None
        self._urgent_in_a_row += 1 if bulk else 0
        return min(urgent, key=lambda lane: lane.urgent[0].number).take_urgent()

    def _begin(self, call: Call) -> None:
        self._waiting -= call.texts
        self._bulk_calls += not call.urgent
        self._rate.begun()
        if self._waiting:
            self._changed.notify()  # another thread may take the next

    def _perform(self, call: Call) -> None:
        began = time.monotonic()
        outcomes = list(_outcomes(call, call.shares))
        seconds = time.monotonic() - began
        finished: list[tuple[EncodingRequest, VectorizeError | None]] = []
        with self._changed:
            call.lane.ended(call, seconds)
            self._bulk_calls -= not call.urgent
            self._rate.ended(call.texts)
            for request, positions, outcome in outcomes:
                if request.over:
                    continue
                if isinstance(outcome, VectorizeError):
                    self._withdraw(call.lane, request)
                    finished.append((request, outcome))
                    continue
                request.store(positions, *outcome)
                if not request.missing:
                    request.over = True
                    finished.append((request, None))
        self._deliver(finished)

    def _deliver(self, finished: Sequence[tuple[EncodingRequest, VectorizeError | None]]) -> None:
        """Tell callers what became of their requests; the event loop is called once for all of them."""
        if finished:
            answers = [(request.answer, error or _encoded(request)) for request, error in finished]
            self._loop.call_soon_threadsafe(_answer, answers)

    # Models

    def _load(self, lane: Lane) -> None:
        """Load a model, in a thread of its own; what is loaded already goes on meanwhile."""
        try:
            encoder = self._leased(lane)
        except BaseException as error:  # noqa: BLE001 (told to whoever waits for the model; Rust's panics are no Exception)
            self._fail(lane, _for_callers(error, lane.model))
            return
        refused: list[tuple[EncodingRequest, VectorizeError | None]] = []
        with self._changed:
            closed = self._closed
            lane.loaded(encoder)
            for request in lane.waiting:
                try:
                    lane.check(request)
                except ItemError as error:
                    self._withdraw(lane, request)
                    refused.append((request, error))
            self._changed.notify_all()
        self._deliver(refused)
        if closed:
            _release([lane])

    def _leased(self, lane: Lane) -> Encoder:
        """Lease the encoder of a model; where it has no room, once more without those that nobody uses."""
        try:
            return lane.lease.enter_context(self._lease(lane.model))
        except ModelTooLargeError:
            with self._changed:
                unused = self._take_unused(seconds=0.0)
            if not unused:
                raise
        _release(unused)
        return lane.lease.enter_context(self._lease(lane.model))

    def _fail(self, lane: Lane, error: VectorizeError) -> None:
        """Tell all who wait for a model that it cannot be had. Who asks next has it tried again."""
        with self._changed:
            failed = lane.waiting
            for request in failed:
                self._withdraw(lane, request)
            if self._lanes.get(lane.model) is lane:
                del self._lanes[lane.model]
        self._deliver([(request, error) for request in failed])

    def _take_unused(self, seconds: float | None = None) -> list[Lane]:
        """Take out the models that nobody has used for so long, by default `keep_seconds`."""
        before = time.monotonic() - (self._keep_seconds if seconds is None else seconds)
        unused = [lane for lane in self._lanes.values() if lane.idle and lane.used <= before]
        for lane in unused:
            del self._lanes[lane.model]
        return unused

    def _seconds_until_unused(self) -> float | None:
        """Return how long until there may be something for `_take_unused`; None where all models are in use."""
        idle = [lane.used for lane in self._lanes.values() if lane.idle]
        return max(0.0, min(idle) + self._keep_seconds - time.monotonic()) if idle else None


class _Rate:
    """How many contents a second are encoded while there is something to encode, of late."""

    def __init__(self) -> None:
        self._contents = self._seconds = self._since = 0.0
        self._under_way = 0

    def begun(self) -> None:
        """Note that a call begins."""
        if not self._under_way:
            self._since = time.monotonic()
        self._under_way += 1

    def ended(self, contents: int) -> None:
        """Note that a call has ended."""
        now = time.monotonic()
        self._under_way -= 1
        self._contents += contents
        self._seconds, self._since = self._seconds + now - self._since, now
        if self._seconds > RATE_SECONDS:
            self._contents, self._seconds = self._contents / 2, self._seconds / 2

    def seconds_for(self, contents: int) -> float | None:
        """Return how long so many contents take; None where nothing has been encoded yet."""
        return contents * self._seconds / self._contents if self._contents else None


_Outcome: TypeAlias = tuple[EncodingRequest, list[int], Encoded | VectorizeError]


def _outcomes(call: Call, shares: Sequence[Share]) -> Iterator[_Outcome]:
    """Encode shares of a call. Where that fails for all of them, each is tried alone: the fault is that of one."""
    contents = [request.contents[position] for request, positions in shares for position in positions]
    try:
        vectors, failures = call.encoder.encode_each(contents, call.purpose)
        tokens = _token_counts(call.encoder, contents, call.purpose)
    except BaseException as error:  # noqa: BLE001 (told to the caller; Rust's panics are no Exception)
        if len(shares) > 1:
            for share in shares:
                yield from _outcomes(call, [share])
        else:
            yield (*shares[0], _for_callers(error, call.lane.model))
        return
    start = 0
    for request, positions in shares:
        rows = range(start, start := start + len(positions))
        failed = next((row for row in rows if row in failures), None)
        if failed is not None:
            yield request, positions, _of_one(request, positions[failed - rows.start], failures[failed])
        elif not np.isfinite(vectors[rows.start : rows.stop]).all():
            yield (
                request,
                positions,
                EncoderFailedError(f"the model {call.lane.model} made vectors that are no numbers"),
            )
        else:
            yield request, positions, (vectors[rows.start : rows.stop], tokens[rows.start : rows.stop])


def _token_counts(encoder: Encoder, contents: Sequence[Content], purpose: Purpose) -> list[int]:
    texts = [content for content in contents if isinstance(content, str)]
    counts = iter(encoder.count_tokens(texts, purpose))
    return [next(counts) if isinstance(content, str) else 0 for content in contents]


def _of_one(request: EncodingRequest, position: int, error: ItemError) -> ItemError:
    """The error of one content of a request, which says which one where there are several."""
    return error if len(request.contents) == 1 else type(error)(f"item {position}: {error}")


def _for_callers(error: BaseException, model: str) -> VectorizeError:
    """An error that callers may see; the log has what they may not."""
    if isinstance(error, VectorizeError):
        return error
    logger.error("the model %s failed", model, exc_info=error)
    return EncoderFailedError(f"the model {model} failed; the log of the server has the reason")


def _encoded(request: EncodingRequest) -> Encoded:
    assert request.vectors is not None, "a request whose contents all have vectors has them"
    vectors: Vectors = request.vectors
    if request.dimension is not None and request.dimension != vectors.shape[1]:
        vectors = cut(vectors, request.dimension)
    return vectors, request.tokens


def _answer(answers: Sequence[tuple["asyncio.Future[Encoded]", Encoded | VectorizeError]]) -> None:
    for future, answer in answers:
        if future.done():  # cancelled
            continue
        if isinstance(answer, VectorizeError):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _release(lanes: Sequence[Lane]) -> None:
    """End the use of encoders. Unloading a model takes a moment, and may fail, which nobody waits for."""
    for lane in lanes:
        try:
            lane.lease.close()
        except Exception:
            logger.exception("the model %s could not be unloaded", lane.model)


def _ending() -> Problem:
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "the server is ending", headers={"Retry-After": "5"})
