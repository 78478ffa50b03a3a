"""Embeddings of remote models: any number of inputs, cut into requests, in order, each input's failure its own."""

import asyncio
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from vectorize_pipelines.errors import (
    ContentRefusedError,
    ItemError,
    NoKeyAvailableError,
    NoSuitableKeyError,
    ProviderUnavailableError,
    SettingsError,
    TooManyTokensError,
)
from vectorize_pipelines.providers.calls import Call, ProviderClient, Usage, counted_tokens
from vectorize_pipelines.providers.failures import MalformedResponseError
from vectorize_pipelines.providers.models import RemoteModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from openai import AsyncOpenAI

Vector: TypeAlias = "npt.NDArray[np.float32]"
#: A text, or an object that the provider's interface has for other contents.
Input: TypeAlias = str | Mapping[str, str]

#: What a model is asked where nothing but its vector's length is wanted, or whether it answers at all.
PROBE = "dimension"
#: A refusal is put down to the content where the model has answered another request within so many seconds.
PROVEN_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 10.0


@dataclass(slots=True)
class Embedded:
    """What became of some inputs, each in its place.

    vectors  as the provider has them; None for an input that it refuses
    errors   of those, by place
    tokens   as the provider counted them: a request's are divided among its inputs by their estimates
    cost     in the currency of the price table; 0 where the model has no price
    """

    vectors: "list[Vector | None]"
    errors: dict[int, ItemError] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    cost: float = 0.0


class EmbeddingModel:
    """A model of a provider that embeds. Used by one event loop.

    dimension  asked of the provider; None: the model's own
    """

    def __init__(self, client: ProviderClient, model: RemoteModel, dimension: int | None = None):
        self._client = client
        self._settings = client.settings
        self._model = model
        self._dimension = dimension
        self._answered_at = -math.inf
        self._most_tokens = client.settings.max_embedding_tokens

    async def probe(self) -> Vector:
        """Return the vector of a text that every model takes. Raises `SettingsError` where this one does not."""
        try:
            (vector,), _, _ = await self._request([PROBE], 2)
        except ContentRefusedError as error:
            raise SettingsError(f"the model cannot be asked for embeddings: {error}") from None
        return vector

    async def embed(self, inputs: Sequence[Input], tokens: Sequence[int]) -> Embedded:
        """Return the vectors of inputs, of which each has about so many tokens; requests run side by side.

        A 429 is waited for, however long it takes. A provider that fails is tried for `providers.deadline_seconds`;
        then `ProviderUnavailableError` is raised. `NoKeyAvailableError` where no key may be used,
        `KeysError` where the state of the keys is away for as long, `SettingsError` where the model cannot be asked.
        """
        done = Embedded([None] * len(inputs), tokens=[0] * len(inputs))
        try:
            async with asyncio.TaskGroup() as group:
                for places in self._requests(range(len(inputs)), tokens):
                    group.create_task(self._fill(done, inputs, tokens, places))
        except* Exception as failures:  # noqa: BLE001 (the first is raised as it is: the others are like it)
            raise _first(failures) from None
        return done

    def _requests(self, wanted: Iterable[int], tokens: Sequence[int]) -> Iterator[list[int]]:
        """Yield the places of inputs that go into one request: at most so many inputs, and so many tokens."""
        places: list[int] = []
        total = 0
        for place in wanted:
            number = tokens[place]
            full = len(places) >= self._settings.max_embedding_batch
            if places and (full or total + number > self._most_tokens):
                yield places
                places, total = [], 0
            places.append(place)
            total += number
        if places:
            yield places

    async def _fill(
        self, done: Embedded, inputs: Sequence[Input], tokens: Sequence[int], places: Sequence[int]
    ) -> None:
        """Embed some inputs in one request; where it is refused, find the input that is to blame.

        Where no key may take so many tokens in a minute, the request is divided, and so are all that follow.
        """
        try:
            vectors, usage, cost = await self._request(
                [inputs[place] for place in places], sum(tokens[place] for place in places)
            )
        except NoSuitableKeyError as error:
            if error.most_tokens is None:
                raise
            if len(places) == 1:
                done.errors[places[0]] = TooManyTokensError(str(error))
                return
            self._most_tokens = min(self._most_tokens, error.most_tokens)
            async with asyncio.TaskGroup() as group:
                for fewer in self._requests(places, tokens):
                    group.create_task(self._fill(done, inputs, tokens, fewer))
            return
        except ContentRefusedError as error:
            if len(places) > 1:
                half = len(places) // 2
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._fill(done, inputs, tokens, places[:half]))
                    group.create_task(self._fill(done, inputs, tokens, places[half:]))
                return
            if time.monotonic() - self._answered_at > PROVEN_SECONDS:
                await self.probe()  # or a wrong setting would cost all inputs, one by one
            done.errors[places[0]] = error
            return
        done.cost += cost
        shares = divide_tokens(usage.prompt_tokens, [tokens[place] for place in places])
        for place, vector, share in zip(places, vectors, shares, strict=True):
            done.vectors[place] = vector
            done.tokens[place] = share

    async def _request(self, inputs: Sequence[Input], tokens: int) -> tuple[list[Vector], Usage, float]:
        """Return the vectors of one request, the tokens that it took and what they cost."""

        async def send(openai: "AsyncOpenAI") -> tuple[tuple[list[Vector], Usage], Usage]:
            request: dict[str, Any] = {"model": self._model.model, "input": inputs, "encoding_format": "float"}
            if self._dimension is not None:
                request["dimensions"] = self._dimension
            response = await openai.embeddings.create(**request)
            usage = _usage(response, tokens)
            return (read_vectors(response, len(inputs)), usage), usage

        call = Call(self._model, tokens, self._settings.deadline_seconds)
        failing_since: float | None = None
        limited_since = time.monotonic()
        while True:
            began = time.monotonic()
            try:
                (vectors, usage), record = await self._client.call(call, send)
            except NoSuitableKeyError:
                raise
            except NoKeyAvailableError:
                if time.monotonic() - began < call.deadline_seconds / 2:
                    raise  # at once, and not about its deadline: no key may be used for the model
            except ProviderUnavailableError as error:
                now = time.monotonic()
                failing_since = now if failing_since is None or error.rate_limited else failing_since
                if now - failing_since >= self._settings.deadline_seconds:
                    raise
                pause = 1 + now - (limited_since if error.rate_limited else failing_since)
                await asyncio.sleep(random.uniform(0, min(LONGEST_PAUSE_SECONDS, pause)))
            else:
                self._client.note(record)
                self._answered_at = time.monotonic()
                return vectors, usage, record.cost or 0.0


def read_vectors(response: object, expected: int) -> list[Vector]:
    """Return the vectors in a response, which may be anything, in order of the inputs.

    Raises `MalformedResponseError`.
    """
    data = getattr(response, "data", None)
    if not isinstance(data, list) or len(data) != expected:
        raise MalformedResponseError(f"it does not have {expected} vectors in it")
    vectors: dict[int, Vector] = {}
    for position, each in enumerate(data):
        index = getattr(each, "index", None)
        vectors[position if index is None else index] = _vector(getattr(each, "embedding", None))
    if sorted(vectors) != list(range(expected)):
        raise MalformedResponseError("it does not say which vector is whose")
    if len({len(vector) for vector in vectors.values()}) != 1:
        raise MalformedResponseError("its vectors have different lengths")
    return [vectors[place] for place in range(expected)]


def _vector(numbers: object) -> Vector:
    import numpy as np

    try:
        vector = np.asarray(numbers, dtype=np.float32)
    except (ValueError, TypeError):
        vector = np.empty(0, dtype=np.float32)
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise MalformedResponseError("one of its vectors is none")
    return vector


def _usage(response: object, estimated: int) -> Usage:
    """Return the tokens that the provider counted; those estimated, where it counts none."""
    counted = counted_tokens(getattr(response, "usage", None), "prompt_tokens")
    return Usage(estimated if counted is None else counted)


def divide_tokens(total: int, weights: Sequence[int]) -> list[int]:
    """Divide a number into whole parts that add up to it, by their weights."""
    shares: list[int] = []
    given, seen, all_weights = 0, 0, max(1, sum(weights))
    for weight in weights:
        seen += weight
        upto = total * seen // all_weights
        shares.append(upto - given)
        given = upto
    return shares


def _first(failures: BaseExceptionGroup[Exception]) -> Exception:
    """Return the first error in a group, however deep it lies."""
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception), "the group has nothing else"
    return error
