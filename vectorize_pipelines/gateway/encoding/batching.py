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
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from http import HTTPStatus
from itertools import count
from types import TracebackType
from typing import Self, TypeAlias

import anyio.to_thread

from vectorize_pipelines.encoders.base import Encoder, Purpose, Vectors
from vectorize_pipelines.encoders.hardware.machine import physical_cores
from vectorize_pipelines.encoders.truncation import cut
from vectorize_pipelines.errors import ItemError, ModelTooLargeError, VectorizeError
from vectorize_pipelines.gateway.encoding.calls import for_callers, perform
from vectorize_pipelines.gateway.encoding.lane import Call, Content, Encoded, EncodingRequest, Lane
from vectorize_pipelines.gateway.encoding.room import WaitingRoom
from vectorize_pipelines.gateway.problems import Problem

logger = logging.getLogger(__name__)

#: The use of the encoder of a model.
Lease: TypeAlias = Callable[[str], AbstractContextManager[Encoder]]

#: After so many calls for small requests, while large ones wait, comes one for these.
URGENT_IN_A_ROW = 4

#: A model that nobody has used for so long may be unloaded, if the cache of encoders wants it.
KEEP_SECONDS = 60.0


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
        self._keep_seconds = keep_seconds
        threads = max(2, physical_cores()) + 1 if calls is None else calls
        self._bulk_threads = max(1, threads - 1)
        self._changed = threading.Condition()
        self._lanes: dict[str, Lane] = {}
        self._numbers = count()
        self._room = WaitingRoom(most_waiting)
        self._bulk_calls = self._urgent_in_a_row = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"encode-{number}", daemon=True) for number in range(threads)
        ]

    @property
    def waiting(self) -> int:
        """Return the number of contents that wait for an encoder."""
        return self._room.waiting

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
            self._room.check(len(request.contents), urgent=request.urgent)
            lane = self._lanes.get(model)
            is_new = lane is None
            if lane is None:
                lane = self._lanes[model] = Lane(model)
            elif lane.encoder is not None:
                lane.check(request)
            request.number = next(self._numbers)
            lane.add(request)
            self._room.waiting += len(request.contents)
            self._changed.notify()
            if is_new:
                threading.Thread(target=self._load, args=(lane,), name=f"load {model}", daemon=True).start()
            return lane

    def _withdraw(self, lane: Lane, request: EncodingRequest) -> None:
        """Forget a request; what a call has been given of it comes to nothing."""
        if not request.over:
            request.over = True
            self._room.waiting -= request.untaken
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
        self._room.begin(call.texts)
        self._bulk_calls += not call.urgent
        if self._room.waiting:
            self._changed.notify()  # another thread may take the next

    def _perform(self, call: Call) -> None:
        began = time.monotonic()
        outcomes = list(perform(call))
        seconds = time.monotonic() - began
        finished: list[tuple[EncodingRequest, VectorizeError | None]] = []
        with self._changed:
            call.lane.ended(call, seconds)
            self._bulk_calls -= not call.urgent
            self._room.end(call.texts)
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
            self._fail(lane, for_callers(error, lane.model))
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
