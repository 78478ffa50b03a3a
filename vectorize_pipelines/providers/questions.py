"""What a chat model is sent, and how its answer is read. Called by `chat`."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from vectorize_pipelines.settings.providers import ProvidersSettings

#: UTF-8 bytes of a token, at least: four in English, three (one character) in Chinese.
BYTES_PER_TOKEN = 3
#: Of an answer that will not do, so much is shown to the model again.
SHOWN_CHARACTERS = 4000
_INSTRUCTION = "Answer with one JSON object, and nothing else, that is valid under this JSON schema:"
_CODE_BLOCK = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Question:
    """The messages of one request.

    response_format  as the protocol has it; None: the request says nothing of it
    tokens           that question and answer may take, estimated
    """

    messages: tuple[Mapping[str, Any], ...]
    response_format: Mapping[str, Any] | None
    tokens: int

    @classmethod
    def make(
        cls,
        system: str,
        prompt: str,
        images: Sequence[str],
        schema: type[BaseModel],
        settings: ProvidersSettings,
    ) -> Self:
        """Return a question with pictures, as `data:` URIs, whose answer is to be an object of `schema`."""
        prompt = without_surrogates(prompt)
        instruction = f"{system}\n\n{_INSTRUCTION}\n{described(schema)}"
        content = [
            *({"type": "image_url", "image_url": {"url": image}} for image in images),
            {"type": "text", "text": prompt},
        ]
        response_format: Mapping[str, Any] | None = {"type": settings.answer_format}
        if settings.answer_format == "json_schema":
            named = {"name": schema.__name__, "schema": json.loads(described(schema))}
            response_format = {"type": "json_schema", "json_schema": named}
        elif settings.answer_format == "text":
            response_format = None
        tokens = (
            estimated_tokens(instruction)
            + estimated_tokens(prompt)
            + settings.image_tokens * len(images)
            + settings.max_answer_tokens
        )
        messages = ({"role": "system", "content": instruction}, {"role": "user", "content": content})
        return cls(messages, response_format, tokens)

    def repaired(self, answer: str, wrong: str) -> Self:
        """Return the question that follows an answer that will not do."""
        shown = answer[:SHOWN_CHARACTERS]
        request = without_surrogates(f"That is not valid: {wrong}. {_INSTRUCTION[:-1]} given before.")
        added = ({"role": "assistant", "content": shown}, {"role": "user", "content": request})
        tokens = self.tokens + estimated_tokens(shown) + estimated_tokens(request)
        return replace(self, messages=(*self.messages, *added), tokens=tokens)


@cache
def described(schema: type[BaseModel]) -> str:
    """Return the JSON schema of what an answer is to be."""
    return json.dumps(schema.model_json_schema(), ensure_ascii=False, sort_keys=True)


def estimated_tokens(text: str) -> int:
    """Return the tokens of a text, rather too many than too few."""
    return len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN + 1


def without_surrogates(text: str) -> str:
    """Return a text that can be sent: halves of pairs, which JSON may have, are no characters, and become `?`."""
    return text.encode("utf-8", "replace").decode()


def bare(answer: str) -> str:
    """Return an answer as text, without the marks of a code block, which models put around JSON."""
    answer = without_surrogates(answer)
    block = _CODE_BLOCK.fullmatch(answer)
    return answer if block is None else block[1]


def what_is_wrong(error: ValidationError) -> str:
    """Return what an answer lacks, in words for the model and for people."""
    problems = [
        f"{'.'.join(map(str, problem['loc'])) or 'the answer'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False)
    ]
    return "; ".join(problems[:5])[:500]
