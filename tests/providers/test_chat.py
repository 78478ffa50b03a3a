"""Answers are objects of a schema, repaired once, and the same content is judged once."""

import asyncio
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest
import sqlalchemy as sa
from pydantic import BaseModel, Field

from tests.providers.installation import SECRETS, calling, installed, serve_keys
from tests.servers.provider import Fault, ProviderServer
from tests.servers.provider_answers import REFUSED_TEXT
from vectorize_pipelines.errors import ContentRefusedError, InvalidAnswerError, ProviderUnavailableError
from vectorize_pipelines.providers.answers import AnswerCache
from vectorize_pipelines.providers.chat import Answer, ChatModel, Image
from vectorize_pipelines.providers.questions import bare
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.provider_calls import provider_calls


class Judgement(BaseModel):
    """What the tests ask for."""

    level: Literal["low", "high"]
    score: float = Field(ge=0, le=1)
    hazards: list[str]


JPEG = Image("image/jpeg", b"\xff\xd8\xff a picture")


async def ask(
    model: ChatModel, prompt: str = "Judge.", cache_key: str | None = None, deadline_seconds: float = 20.0
) -> Answer[Judgement]:
    return await model.ask(
        system="You judge traffic.",
        prompt=prompt,
        images=[JPEG],
        schema=Judgement,
        prompt_version="1",
        cache_key=cache_key,
        deadline_seconds=deadline_seconds,
        tenant="city",
        camera="c1",
    )


def asked(settings: Settings, *prompts: str, cache_key: str | None = None) -> list[Answer[Judgement]]:
    """Ask all at once, each with the cache where there is a key for it; calls are logged."""

    async def run() -> list[Answer[Judgement]]:
        answers = AnswerCache.open(settings)
        assert answers is not None
        try:
            async with calling(settings, logged=True) as client:
                model = ChatModel(client, settings.providers.model, answers)
                return await asyncio.gather(*(ask(model, prompt, cache_key) for prompt in prompts))
        finally:
            await answers.close()

    return asyncio.run(run())


def logged(settings: Settings) -> list[Mapping[str, object]]:
    with closing(Database.open(settings)) as database, database.read() as connection:
        return [dict(row) for row in connection.execute(sa.select(provider_calls)).mappings()]


@pytest.mark.parametrize("answer_format", ["json_object", "json_schema", "text"])
def test_an_answer_is_an_object_of_the_schema(answer_format: str, home: Path, provider: ProviderServer) -> None:
    serve_keys(provider)
    settings = installed(
        home,
        provider,
        answer_format=answer_format,
        prices={"qwen-vl-max": {"input_per_million": 1000, "output_per_million": 2000}},
    )
    ((answer),) = asked(settings, "Judge.")
    assert answer.value.level in ("low", "high")
    (row,) = logged(settings)
    taken = answer.record
    assert taken.prompt_tokens > 300  # the picture's
    assert taken.completion_tokens == 50
    assert taken.cost == pytest.approx((taken.prompt_tokens * 1000 + 50 * 2000) / 1e6)
    assert (row["tenant"], row["camera"], row["model"], row["outcome"]) == ("city", "c1", "qwen-vl-max", "completed")
    assert row["key_name"] in SECRETS
    assert (row["prompt_tokens"], row["completion_tokens"]) == (taken.prompt_tokens, 50)
    assert (row["cost"], row["latency_ms"]) == (taken.cost, taken.latency_ms)


@pytest.mark.parametrize("kind", ["no_json", "other_schema", "surrogate"])
def test_an_answer_that_will_not_do_is_repaired_by_a_second_question(
    kind: str, home: Path, provider: ProviderServer
) -> None:
    serve_keys(provider, faults=[Fault(kind)])
    settings = installed(home, provider)
    (answer,) = asked(settings, "Judge.")
    assert answer.record.attempts == 2
    assert answer.record.completion_tokens == 100
    assert sorted(str(row["outcome"]) for row in logged(settings)) == ["completed", "invalid_answer"]


def test_a_second_answer_that_will_not_do_is_the_items_failure(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, faults=[Fault("other_schema", count=None)])
    settings = installed(home, provider)
    with pytest.raises(
        InvalidAnswerError, match="answered twice what is no Judgement: level: Field required"
    ) as failed:
        asked(settings, "Judge.")
    taken = failed.value.record
    assert (taken.attempts, taken.completion_tokens, taken.outcome) == (2, 100, "invalid_answer")
    assert taken.prompt_tokens > 600
    assert provider.report().requests == 2
    assert [row["outcome"] for row in logged(settings)] == ["invalid_answer"] * 2


def test_content_that_is_refused_is_the_items_failure(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider)
    settings = installed(home, provider)
    with pytest.raises(ContentRefusedError):
        asked(settings, f"Judge. {REFUSED_TEXT}")
    assert [row["outcome"] for row in logged(settings)] == ["refused"]


def test_a_refusal_that_is_no_text_is_one_and_was_paid_for(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, faults=[Fault("other_schema", count=1), Fault("no_text")])
    settings = installed(home, provider)
    with pytest.raises(ContentRefusedError, match=r"refuses to answer: .*the policy") as failed:
        asked(settings, "Judge.")
    assert (failed.value.record.attempts, failed.value.record.completion_tokens) == (2, 100)
    assert sorted(str(row["outcome"]) for row in logged(settings)) == ["invalid_answer", "refused"]


def test_numbers_of_tokens_that_are_none_are_estimated(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, faults=[Fault("no_usage")])
    (answer,) = asked(installed(home, provider), "Judge.")
    assert answer.record.prompt_tokens > 300


def test_half_a_character_in_a_question_is_asked_about(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider)
    (answer,) = asked(installed(home, provider), "Judge \ud83d.")
    assert answer.value.level in ("low", "high")


def test_the_same_content_is_judged_once(home: Path, provider: ProviderServer) -> None:
    """Also while it is being judged, and by later processes."""
    serve_keys(provider, answer_seconds=0.1)
    settings = installed(home, provider)
    first = asked(settings, *["Judge."] * 5, cache_key="frame")
    (later,) = asked(settings, "Judge.", cache_key="frame")
    assert provider.report().requests == 1
    assert len({answer.value.model_dump_json() for answer in (*first, later)}) == 1
    assert sorted(answer.record.cached for answer in first) == [False, True, True, True, True]
    assert later.record.cached
    assert later.record.key_name in SECRETS
    assert (later.record.prompt_tokens, later.record.cost) == (0, None)
    assert sorted(str(row["outcome"]) for row in logged(settings)) == ["cached"] * 5 + ["completed"]


def test_other_content_models_and_prompts_are_judged_again(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider)
    settings = installed(home, provider)
    asked(settings, "Judge.", cache_key="one frame")
    asked(settings, "Judge.", cache_key="another frame")
    other = settings.model_copy(update={"providers": settings.providers.model_copy(update={"model": "other"})})
    asked(other, "Judge.", cache_key="one frame")
    assert provider.report().requests == 3


def test_a_failure_is_not_shared(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, faults=[Fault("other_schema", count=2)])
    settings = installed(home, provider)

    async def run() -> list[object]:
        answers = AnswerCache.open(settings)
        assert answers is not None
        try:
            async with calling(settings) as client:
                model = ChatModel(client, "qwen-vl-max", answers)
                return await asyncio.gather(*(ask(model, cache_key="frame") for _ in range(2)), return_exceptions=True)
        finally:
            await answers.close()

    assert [type(each) for each in asyncio.run(run())] == [InvalidAnswerError, Answer]


def test_who_waits_for_the_same_answer_waits_at_most_its_deadline(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, faults=[Fault("stall", count=None, seconds=3600)])
    settings = installed(home, provider, call_seconds=60.0)

    async def run() -> None:
        answers = AnswerCache.open(settings)
        assert answers is not None
        try:
            async with calling(settings) as client:
                model = ChatModel(client, "qwen-vl-max", answers)
                first = asyncio.create_task(ask(model, cache_key="frame", deadline_seconds=3600))
                while not provider_is_asked(await client.pool.health_check()):
                    await asyncio.sleep(0.01)
                with pytest.raises(ProviderUnavailableError, match="which was asked before"):
                    await ask(model, cache_key="frame", deadline_seconds=0.2)
                first.cancel()
                await asyncio.wait([first])
        finally:
            await answers.close()

    asyncio.run(run())


def provider_is_asked(health: Mapping[str, Mapping[str, object]]) -> bool:
    return any(key["in_use"] for key in health.values())


@pytest.mark.parametrize(
    ("said", "content"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ('```json\n{"a": 1}\n```', '{"a": 1}'),
        (' ```\n{"a": "```"}\n``` \n', '{"a": "```"}'),
        ("no JSON", "no JSON"),
    ],
)
def test_marks_of_a_code_block_are_no_part_of_an_answer(said: str, content: str) -> None:
    assert bare(said) == content
