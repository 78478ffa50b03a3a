"""Questions to a multimodal model, with answers that are checked against a schema."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

from vectorize_pipelines.providers.answers import AnswerCache
from vectorize_pipelines.providers.calls import CallRecord, ProviderClient

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded picture, such as `image/jpeg`."""

    media_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What a model answered, and what that took: all questions and repeats together."""

    value: T
    record: CallRecord


class ChatModel:
    """One model: `MODEL` of the default provider, or `PROVIDER/MODEL` where the settings name that provider."""

    def __init__(self, client: ProviderClient, model: str, answers: AnswerCache | None):
        """Ask `model` through `client`; `answers` keeps what was answered (None: every question is asked)."""
        raise NotImplementedError

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
        tenant: str | None,
        camera: str | None,
    ) -> Answer[T]:
        """Return the model's answer as an object of `schema`.

        `cache_key` is a hash of the content: an answer to the same content by the same model under the same
        `prompt_version` is not asked for again, nor while it is being asked for. None: it is.

        Raises `InvalidAnswerError` where the answer is none of the schema, nor that to a second question that says what
        was wrong, and `ContentRefusedError` where the provider will not answer: both concern this item alone.
        `ProviderUnavailableError` and `NoKeyAvailableError` may pass.
        """
        raise NotImplementedError
