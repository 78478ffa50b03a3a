"""The queue of one model, and how calls of its encoder are put together from it.

Made and used by `batching`, under the lock of its queue.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

import numpy as np

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.encoders.base import Encoder, Purpose, TokenCount, Vectors
from vectorize_pipelines.encoders.truncation import truncated_spec
from vectorize_pipelines.errors import ItemError, SettingsError

#: A text, or the bytes of an image.
Content: TypeAlias = str | bytes

#: Vectors of shape (n, dimension), and the tokens of each text; none for an image.
Encoded: TypeAlias = tuple[Vectors, list[TokenCount]]
NO_TOKENS = TokenCount(0, 0)

#: A request of no more is urgent: somebody waits for it. Search sends one text.
FEW_TEXTS, FEW_CHARACTERS = 16, 2**14

#: A call of the encoder takes about so long at the most, once the rate of the model is known: a large request is cut
#: into parts of this length, between which others have their turn. Until then, and at the least and the most, a call
#: has so many tokens.
CALL_SECONDS = 0.25
FIRST_TOKENS, LEAST_TOKENS, MOST_TOKENS = 4096, 512, 2**17
MOST_TEXTS = 512

#: Of so many small requests that wait, those of similar lengths go together: shorter texts are padded to the longest.
#: So that there is something to choose from, each of an encoder's streams has a call of a quarter of its part of them.
#: An encoder whose calls take turns has all of them at once.
CHOICE, SHARE = 256, 4

#: Tokens that an image counts for, and a text beside those of its characters.
IMAGE_TOKENS, SPECIAL_TOKENS = 512, 2

#: Characters of a token, about: of ASCII, of others, and those that are tokenized while one token is encoded.
ASCII_CHARACTERS, OTHER_CHARACTERS, TOKENIZED_CHARACTERS = 4, 2, 256


class DimensionError(ItemError):
    """The model has no vectors of the dimension that was asked for."""


@dataclass(eq=False, slots=True)
class EncodingRequest:
    """A caller's contents to encode, and their outcome.

    number   its turn: the lower, the sooner
    urgent   whether it goes before the others, being a small one
    order    positions of its contents, longest first, since texts of equal length need no padding
    taken    how many of `order` calls have been given
    missing  contents without a vector
    over     whether it has been answered, or its caller has gone away
    """

    contents: Sequence[Content]
    purpose: Purpose
    dimension: int | None
    answer: "asyncio.Future[Encoded]"
    number: int = 0
    urgent: bool = field(init=False)
    order: list[int] = field(init=False)
    taken: int = 0
    missing: int = field(init=False)
    vectors: "Vectors | None" = None
    tokens: list[TokenCount] = field(init=False)
    over: bool = False

    def __post_init__(self) -> None:
        characters = sum(len(content) for content in self.contents if isinstance(content, str))
        self.urgent = len(self.contents) <= FEW_TEXTS and characters <= FEW_CHARACTERS
        self.order = sorted(range(len(self.contents)), key=lambda position: -len(self.contents[position]))
        self.missing = len(self.contents)
        self.tokens = [NO_TOKENS] * len(self.contents)

    @property
    def untaken(self) -> int:
        """Return the number of contents that no call has been given yet."""
        return len(self.order) - self.taken

    def take(self, number: int) -> list[int]:
        """Return the positions of the next contents, which a call is given."""
        positions = self.order[self.taken : self.taken + number]
        self.taken += len(positions)
        return positions

    def store(self, positions: Sequence[int], vectors: Vectors, tokens: Sequence[TokenCount]) -> None:
        """Copy the vectors of some contents, so that nothing of the call is kept."""
        if self.vectors is None:
            self.vectors = np.empty((len(self.contents), vectors.shape[1]), dtype=np.float32)
        self.vectors[positions] = vectors
        for position, count in zip(positions, tokens, strict=True):
            self.tokens[position] = count
        self.missing -= len(positions)


#: A request, and the positions of those of its contents that are meant.
Share: TypeAlias = tuple[EncodingRequest, list[int]]


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the encoder: contents of one request or of several, with the same prompt."""

    lane: "Lane"
    encoder: Encoder
    purpose: Purpose
    shares: list[Share]
    tokens: int
    urgent: bool

    @property
    def texts(self) -> int:
        """The number of contents."""
        return sum(len(positions) for _, positions in self.shares)


class Lane:
    """The requests for one model. Not thread-safe: the queue's lock guards it.

    lease       ends the use of the encoder
    encoder     None while the model is being loaded
    calls       calls of the encoder that are under way
    bulk_calls  those of them that are for large requests
    used        when the last call ended, or the model was loaded, by the monotonic clock
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.lease = ExitStack()
        self.encoder: Encoder | None = None
        self.urgent: deque[EncodingRequest] = deque()
        self.bulk: deque[EncodingRequest] = deque()
        self.calls = self.bulk_calls = 0
        self.used = 0.0
        self._call_tokens = FIRST_TOKENS

    @property
    def idle(self) -> bool:
        """True of a loaded model that nobody waits for."""
        return self.encoder is not None and not (self.calls or self.urgent or self.bulk)

    @property
    def waiting(self) -> list[EncodingRequest]:
        """Return all requests with contents that no call has been given."""
        return [*self.urgent, *self.bulk]

    @property
    def urgent_due(self) -> bool:
        """Return whether a small request waits, and may be encoded now."""
        return bool(self.urgent) and self._has_room

    @property
    def bulk_due(self) -> bool:
        """Return whether a large request waits, and may be encoded now: one call is kept for small ones."""
        return bool(self.bulk) and self._has_room and self.bulk_calls < self._encoder.streams

    def loaded(self, encoder: Encoder) -> None:
        """Have calls made from now on."""
        self.encoder, self.used = encoder, time.monotonic()

    def check(self, request: EncodingRequest) -> None:
        """Raise `ItemError` for a request that the loaded model cannot answer; `DimensionError` for its dimension."""
        assert self.encoder is not None, "only what is loaded is known"
        spec = self.encoder.spec
        try:
            truncated_spec(spec, request.dimension)
        except SettingsError as error:
            raise DimensionError(str(error)) from None
        if Modality.IMAGE not in spec.modalities and any(isinstance(each, bytes) for each in request.contents):
            raise ItemError(f"{spec.name} encodes text only, and there is an image")

    def add(self, request: EncodingRequest) -> None:
        """Have a request wait for its turn."""
        (self.urgent if request.urgent else self.bulk).append(request)

    def discard(self, request: EncodingRequest) -> None:
        """Forget a request, as far as it still waits."""
        with suppress(ValueError):
            (self.urgent if request.urgent else self.bulk).remove(request)

    def take_urgent(self) -> Call:
        """Return a call for the small request that waits longest, and for others whose texts are about as long."""
        first = self.urgent[0]
        looked_at = [self.urgent.popleft() for _ in range(min(CHOICE, len(self.urgent)))]
        tokens = {request: self._tokens(request) for request in looked_at if self._fits(request, first)}
        streams = self._encoder.streams
        share = sum(tokens.values()) // (SHARE * streams if streams > 1 else 1)
        room = min(self._call_tokens, max(LEAST_TOKENS, share))
        length = _mean_length(first)
        shares: list[Share] = []
        taken = texts = 0
        for request in sorted(tokens, key=lambda each: abs(_mean_length(each) - length)):
            if shares and (taken + tokens[request] > room or texts + request.untaken > MOST_TEXTS):
                break
            taken, texts = taken + tokens[request], texts + request.untaken
            shares.append((request, request.take(request.untaken)))
        self.urgent.extendleft(request for request in reversed(looked_at) if request.untaken)
        return self._call(first.purpose, shares, taken, urgent=True)

    def take_bulk(self, number: int) -> Call:
        """Return a call for a part of the large request whose turn it is; after the last part come the next requests.

        A request of which something is left waits for its next turn, which is `number`, behind the others.
        """
        first = self.bulk[0]
        shares: list[Share] = []
        passed: list[EncodingRequest] = []
        tokens = texts = 0
        while self.bulk:
            request = self.bulk.popleft()
            if not self._fits(request, first):
                passed.append(request)
                continue
            positions, cost = self._part(request, tokens, texts)
            if positions:
                shares.append((request, positions))
                tokens, texts = tokens + cost, texts + len(positions)
            if not request.untaken:
                continue
            if positions:
                request.number = number
                self.bulk.append(request)
            else:
                self.bulk.appendleft(request)
            break
        self.bulk.extendleft(reversed(passed))
        return self._call(first.purpose, shares, tokens, urgent=False)

    def ended(self, call: Call, seconds: float) -> None:
        """Note how long a call took: those that come are made so large that they take `CALL_SECONDS`."""
        self.calls -= 1
        self.bulk_calls -= not call.urgent
        self.used = time.monotonic()
        if call.tokens >= self._call_tokens // 2:  # a small one says little of the rate
            wanted = min(call.tokens * CALL_SECONDS / max(seconds, 1e-6), 4.0 * self._call_tokens)
            self._call_tokens = round(min(MOST_TOKENS, max(LEAST_TOKENS, (self._call_tokens + wanted) / 2)))

    @property
    def _has_room(self) -> bool:
        """Return whether there may be one more call: one for each stream, and one ready for when another ends."""
        return self.encoder is not None and self.calls <= self.encoder.streams

    @property
    def _encoder(self) -> Encoder:
        assert self.encoder is not None, "only what is loaded is called"
        return self.encoder

    def _call(self, purpose: Purpose, shares: list[Share], tokens: int, *, urgent: bool) -> Call:
        self.calls += 1
        self.bulk_calls += not urgent
        return Call(self, self._encoder, purpose, shares, tokens, urgent)

    def _fits(self, request: EncodingRequest, first: EncodingRequest) -> bool:
        """Return whether two requests may be in one call: it has one prompt."""
        return request.purpose == first.purpose or self._encoder.spec.query_prompt == self._encoder.spec.prompt

    def _part(self, request: EncodingRequest, tokens: int, texts: int) -> tuple[list[int], int]:
        """Take of a request what fits beside what the call has already, and count its tokens.

        At least one content, where the call has nothing yet.
        """
        cost = count = 0
        for position in islice(request.order, request.taken, None):
            each = self._estimated_tokens(request.contents[position])
            full = tokens + cost + each > self._call_tokens or texts + count >= MOST_TEXTS
            if full and texts + count:
                break
            cost, count = cost + each, count + 1
        return request.take(count), cost

    def _tokens(self, request: EncodingRequest) -> int:
        return sum(map(self._estimated_tokens, request.contents))

    def _estimated_tokens(self, content: Content) -> int:
        """Return an estimate of a content's tokens; the encoder finds out how many it has."""
        if isinstance(content, bytes):
            return IMAGE_TOKENS
        characters = ASCII_CHARACTERS if content.isascii() else OTHER_CHARACTERS
        tokens = len(content) // characters + SPECIAL_TOKENS
        return min(tokens, self._encoder.spec.max_length or tokens) + len(content) // TOKENIZED_CHARACTERS


def _mean_length(request: EncodingRequest) -> float:
    return sum(map(len, request.contents)) / len(request.contents)
