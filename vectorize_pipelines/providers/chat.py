"""Questions to a multimodal model, with answers that are checked against a schema."""

import asyncio
import hashlib
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakValueDictionary

from pydantic import BaseModel, ValidationError

from vectorize_pipelines.errors import ContentRefusedError, InvalidAnswerError, ProviderUnavailableError
from vectorize_pipelines.providers.answers import AnswerCache
from vectorize_pipelines.providers.calls import Call, CallRecord, ProviderClient, Usage, counted_tokens
from vectorize_pipelines.providers.failures import MESSAGE_CHARACTERS, MalformedResponseError
from vectorize_pipelines.providers.models import parse_model
from vectorize_pipelines.providers.questions import Question, bare, described, what_is_wrong

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Answer", "ChatModel", "Image"]

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded picture, such as `image/jpeg`."""

    media_type: str
    content: bytes

    @property
    def data_uri(self) -> str:
        """The picture as questions carry it."""
        return f"data:{self.media_type};base64,{b64encode(self.content).decode()}"


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What a model answered, and what that took: all questions and repeats together."""

    value: T
    record: CallRecord


class ChatModel:
    """One model: `MODEL` of the default provider, or `PROVIDER/MODEL` where the settings name that provider."""

    def __init__(self, client: ProviderClient, model: str, answers: AnswerCache | None):
        """Ask `model` through `client`; `answers` keeps what was answered (None: every question is asked)."""
        self._client = client
        self._model = parse_model(model, client.settings)
        self._answers = answers
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def ask(
        self,
        *,
        system: str,
        prompt: str,
        images: Sequence[Image],
        schema: type[T],
        prompt_version: str,
        cache_key: str | None,
        deadline_seconds: float,
        tenant: str | None = None,
        camera: str | None = None,
        begins: Callable[[], None] = lambda: None,
    ) -> Answer[T]:
        """Return the model's answer as an object of `schema`.

        `cache_key` is a hash of the content: an answer to the same content by the same model under the same
        `prompt_version` is not asked for again, nor while it is being asked for. None: it is.

        `begins` is called once the question stands in line for a key no more, and perhaps again when it is repeated:
        when it is sent, or where it waits for the answer to the same one.

        Raises `InvalidAnswerError` where the answer is none of the schema, nor that to a second question that says what
        was wrong, and `ContentRefusedError` where the provider will not answer: both concern this item alone.
        `ProviderUnavailableError` and `NoKeyAvailableError` may pass; `SettingsError` needs a person.
        """
        began = time.monotonic()
        question = Question.make(system, prompt, [image.data_uri for image in images], schema, self._client.settings)
        call = Call(self._model, question.tokens, deadline_seconds, tenant, camera, begins)
        if self._answers is None or cache_key is None:
            return await self._asked(question, schema, call)
        key = _answer_key(self._model.full_name, prompt_version, schema, cache_key)
        async with self._turn(key, deadline_seconds, begins):
            kept = _kept(await self._answers.get(key), schema, call, began)
            if kept is not None:
                self._client.note(kept.record)
                return kept
            left = max(0.0, deadline_seconds - (time.monotonic() - began))
            answer = await self._asked(question, schema, replace(call, deadline_seconds=left))
            content = {"answer": answer.value.model_dump(mode="json"), "key_name": answer.record.key_name}
            await self._answers.put(key, json.dumps(content))
            return answer

    @asynccontextmanager
    async def _turn(self, key: str, seconds: float, waits: Callable[[], None]) -> AsyncIterator[None]:
        """Wait until nobody else asks for the same answer. Raises `ProviderUnavailableError` after so many seconds."""
        lock = self._asking.setdefault(key, asyncio.Lock())
        if lock.locked():
            waits()
        try:
            async with asyncio.timeout(seconds):
                await lock.acquire()
        except TimeoutError:
            raise ProviderUnavailableError(
                f"the provider {self._model.provider} did not answer the same question for {self._model.model}, which "
                f"was asked before, in {seconds:.1f} s"
            ) from None
        try:
            yield
        finally:
            lock.release()

    async def _asked(self, question: Question, schema: type[T], call: Call) -> Answer[T]:
        """Ask, and once more where the answer will not do. Every call is noted."""
        began = time.monotonic()
        said, first = await self._said(question, call)
        try:
            value = schema.model_validate_json(said)
        except ValidationError as error:
            self._client.note(replace(first, outcome="invalid_answer"))
            question = question.repaired(said, what_is_wrong(error))
        else:
            self._client.note(first)
            return Answer(value, first)
        left = max(0.0, call.deadline_seconds - (time.monotonic() - began))
        try:
            said, second = await self._said(question, replace(call, tokens=question.tokens, deadline_seconds=left))
        except ContentRefusedError as error:
            error.record = first if error.record is None else _together(first, error.record)
            raise
        try:
            value = schema.model_validate_json(said)
        except ValidationError as error:
            second = replace(second, outcome="invalid_answer")
            self._client.note(second)
            wrong = what_is_wrong(error)
            raise InvalidAnswerError(
                f"{call.model.full_name} answered twice what is no {schema.__name__}: {wrong}", _together(first, second)
            ) from None
        self._client.note(second)
        return Answer(value, _together(first, second))

    async def _said(self, question: Question, call: Call) -> tuple[str, CallRecord]:
        """Return the text of an answer, and what the call took. Raises `ContentRefusedError`, as `ask` the others."""

        async def send(openai: "AsyncOpenAI") -> tuple[_Choice, Usage]:
            # Its `chat.completions.create` compares every part of question and answer with its types: a millisecond.
            response = await openai.post("/chat/completions", cast_to=object, body=self._request(question))
            return _first_choice(response), _usage(response, call)

        choice, record = await self._client.call(call, send)
        if choice.refusal is not None:
            refused = replace(record, outcome="refused")
            self._client.note(refused)
            said = choice.refusal[:MESSAGE_CHARACTERS]
            raise ContentRefusedError(f"{call.model.full_name} refuses to answer: {said}", refused)
        return bare(choice.content), record

    def _request(self, question: Question) -> dict[str, Any]:
        """Return what the protocol has for a question."""
        body: dict[str, Any] = {
            "model": self._model.model,
            "max_tokens": self._client.settings.max_answer_tokens,
            "messages": question.messages,
        }
        if question.response_format is not None:
            body["response_format"] = question.response_format
        return body


@dataclass(frozen=True, slots=True)
class _Choice:
    """What a response says. `refusal`: why the model does not answer, None where it does."""

    content: str
    refusal: str | None


def _first_choice(response: object) -> _Choice:
    """Return the answer in a response, which may be anything. Raises `MalformedResponseError`."""
    choices = response.get("choices") if isinstance(response, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    content = message.get("content") if isinstance(message, dict) else 0
    if not isinstance(content, str | None):
        raise MalformedResponseError("it has no answer in it")
    assert isinstance(choice, dict)
    assert isinstance(message, dict)
    refusal = message.get("refusal") or ("its filter" if choice.get("finish_reason") == "content_filter" else None)
    return _Choice(content or "", None if refusal is None else str(refusal))


def _usage(response: object, call: Call) -> Usage:
    """Return the tokens that were counted; those estimated, where the provider counts none."""
    usage = response.get("usage") if isinstance(response, dict) else None
    prompt, completion = (counted_tokens(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    return Usage(call.tokens) if prompt is None or completion is None else Usage(prompt, completion)


def _answer_key(model: str, prompt_version: str, schema: type[BaseModel], cache_key: str) -> str:
    """Return a name for the answer of a model to a content."""
    parts = [model, prompt_version, described(schema), cache_key]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _kept(content: str | None, schema: type[T], call: Call, began: float) -> Answer[T] | None:
    """Return an answer that was kept; None where there is none of this schema."""
    if content is None:
        return None
    try:
        kept = json.loads(content)
        value, key_name = schema.model_validate(kept["answer"]), str(kept["key_name"])
    except (ValueError, KeyError, TypeError):  # of another version
        return None
    record = CallRecord(
        at=datetime.now(UTC),
        model=call.model.short_name,
        key_name=key_name,
        prompt_tokens=0,
        completion_tokens=0,
        cost=None,
        latency_ms=(time.monotonic() - began) * 1000,
        outcome="cached",
        attempts=0,
        cached=True,
        tenant=call.tenant,
        camera=call.camera,
    )
    return Answer(value, record)


def _together(first: CallRecord, second: CallRecord) -> CallRecord:
    """Return the record of a question that took two calls."""
    return replace(
        second,
        at=first.at,
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        completion_tokens=first.completion_tokens + second.completion_tokens,
        cost=None if second.cost is None else (first.cost or 0.0) + second.cost,
        latency_ms=first.latency_ms + second.latency_ms,
        attempts=first.attempts + second.attempts,
    )
