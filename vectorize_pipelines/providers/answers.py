"""Answers of models by what was asked, so that the same content is judged once."""

from typing import Protocol, Self

from vectorize_pipelines.settings import Settings


class AnswerCache(Protocol):
    """Answers under a key. All of it can be lost: what it held is asked again."""

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the cache of an installation."""

    async def get(self, key: str) -> str | None:
        """Return the answer under a key, None where there is none."""

    async def put(self, key: str, answer: str) -> None:
        """Keep an answer."""

    async def close(self) -> None:
        """Close the cache; a second call does nothing."""
