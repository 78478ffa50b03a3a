"""Calls survive what providers do: each fault by a real server, keys of a real pool."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.providers.installation import SECRETS, calling, installed, serve_keys
from tests.servers.provider import Fault, KeyLimits, ProviderServer
from vectorize_pipelines.errors import (
    ContentRefusedError,
    NoKeyAvailableError,
    ProviderUnavailableError,
    SettingsError,
    VectorizeError,
)
from vectorize_pipelines.providers import calls
from vectorize_pipelines.providers.calls import Call, CallRecord, ProviderClient, Usage
from vectorize_pipelines.providers.embeddings import EmbeddingModel
from vectorize_pipelines.providers.models import RemoteModel

MODEL = RemoteModel("default", "judge")


async def ask(
    client: ProviderClient, text: str = "a text", deadline_seconds: float = 20.0, model: RemoteModel = MODEL
) -> CallRecord:
    async def send(openai: AsyncOpenAI) -> tuple[str, Usage]:
        response = await openai.embeddings.create(model=model.model, input=[text], encoding_format="float")
        return "answered", Usage(response.usage.prompt_tokens)

    response, record = await client.call(Call(model, 10, deadline_seconds), send)
    assert response == "answered"
    return record


@pytest.mark.parametrize("kind", ["server_error", "bad_gateway", "cut", "rate_limited", "unauthorized", "forbidden"])
def test_a_failure_that_passes_is_survived(kind: str, home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, faults=[Fault(kind, seconds=0.2)])

    async def run() -> CallRecord:
        async with calling(installed(home, provider)) as client:
            return await ask(client)

    record = asyncio.run(run())
    assert (record.outcome, record.attempts, record.prompt_tokens) == ("completed", 2, 1)
    assert record.key_name in SECRETS


def test_a_stall_costs_one_attempt(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, faults=[Fault("stall", seconds=3600)])

    async def run() -> CallRecord:
        async with calling(installed(home, provider, call_seconds=0.5)) as client:
            return await ask(client)

    record = asyncio.run(run())
    assert (record.outcome, record.attempts) == ("completed", 2)


def test_a_429_cools_the_one_key_for_what_the_provider_asks_by_its_own_clock(
    home: Path, provider: ProviderServer
) -> None:
    serve_keys(
        provider,
        faults=[Fault("rate_limited", key=SECRETS["first"], header="date", seconds=600, count=None)],
        clock_skew_seconds=-5,
    )

    async def run() -> tuple[list[str], float]:
        settings = installed(home, provider, keys={"strategy": "priority", "default_cooldown": 5})
        async with calling(settings) as client:
            records = [await ask(client) for _ in range(5)]
            health = await client.pool.health_check()
            return [record.key_name for record in records], health["first"]["next_available_seconds"]

    names, seconds = asyncio.run(run())
    assert names == ["second"] * 5
    assert 300 < seconds <= 600  # an HTTP date has whole seconds
    assert provider.report().statuses["429"] == 1


def test_a_key_that_is_refused_is_used_no_more(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, faults=[Fault("unauthorized", key=SECRETS["first"], count=None)])

    async def run() -> list[str]:
        async with calling(installed(home, provider)) as client:
            return [(await ask(client)).key_name for _ in range(6)]

    assert asyncio.run(run()) == ["second"] * 6
    assert provider.report().statuses["401"] == 1


def test_no_key_is_tried_more_often_than_the_file_says(
    home: Path, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "FIRST_PAUSE_SECONDS", 0.01)
    serve_keys(provider, faults=[Fault("server_error", count=None)])

    async def run() -> None:
        async with calling(installed(home, provider, keys={"max_retry_per_key": 2})) as client:
            with pytest.raises(ProviderUnavailableError, match=r"default did not answer .* HTTP 500"):
                await ask(client)

    asyncio.run(run())
    assert provider.report().statuses == {"500": 4}


def test_every_key_is_tried_before_a_call_is_given_up(
    home: Path, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "FIRST_PAUSE_SECONDS", 0.01)
    serve_keys(provider, faults=[Fault("server_error", key=SECRETS["first"], count=None)])

    async def run() -> tuple[CallRecord, dict[str, dict[str, Any]]]:
        settings = installed(home, provider, keys={"strategy": "priority", "max_retry_per_key": 3})
        async with calling(settings) as client:
            return await ask(client), await client.pool.health_check()

    record, health = asyncio.run(run())
    assert (record.key_name, record.attempts) == ("second", 4)
    assert (health["first"]["calls"], health["second"]["calls"]) == (3, 1)


def test_a_pause_of_nothing_is_none_and_another_key_is_tried(home: Path, provider: ProviderServer) -> None:
    limited = Fault("rate_limited", key=SECRETS["first"], header="retry-after", seconds=0, count=None)
    serve_keys(provider, faults=[limited])

    async def run() -> tuple[CallRecord, float]:
        settings = installed(home, provider, keys={"strategy": "priority", "default_cooldown": 600})
        async with calling(settings) as client:
            return await ask(client), (await client.pool.health_check())["first"]["cooling_seconds"]

    record, cooling = asyncio.run(run())
    assert (record.key_name, record.attempts) == ("second", 2)
    assert cooling > 300


def test_another_key_is_tried_after_a_429_though_the_first_is_free_again(
    home: Path, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "AT_ONCE_SECONDS", 10.0)
    serve_keys(provider, faults=[Fault("rate_limited", key=SECRETS["first"], header="none", count=None)])

    async def run() -> CallRecord:
        async with calling(
            installed(home, provider, keys={"strategy": "priority", "default_cooldown": 0.01})
        ) as client:
            return await ask(client)

    record = asyncio.run(run())
    assert (record.key_name, record.attempts) == ("second", 2)


@pytest.mark.parametrize("names", [("first",), ("first", "second")])
@pytest.mark.slow
def test_who_is_always_told_to_come_back_at_once_does_not_ask_without_end(
    names: tuple[str, ...], home: Path, provider: ProviderServer
) -> None:
    serve_keys(provider, faults=[Fault("rate_limited", header="retry-after", seconds=0, count=None)])

    async def run() -> None:
        keys = {"default_cooldown": 0.1, "max_retry_per_key": 100}
        async with calling(installed(home, provider, names=names, keys=keys, deadline_seconds=3600.0)) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await EmbeddingModel(client, MODEL).embed(["text"], [1])

    asyncio.run(run())
    # 0.1 + 0.2 + 0.4 + 0.8 + 1.6 s of cooling, for each key
    assert 0 < sum(provider.report().statuses.values()) <= 6 * len(names)


@pytest.mark.slow
def test_keys_that_cool_for_longer_than_a_call_lasts_are_waited_for_by_embeddings(
    home: Path, provider: ProviderServer
) -> None:
    serve_keys(provider, faults=[Fault("rate_limited", seconds=2)])

    async def run() -> int:
        async with calling(installed(home, provider, names=("first",), deadline_seconds=0.5)) as client:
            return len((await EmbeddingModel(client, MODEL).embed(["text"], [1])).vectors)

    assert asyncio.run(run()) == 1
    assert provider.report().statuses == {"429": 1, "200": 1}


def test_the_deadline_is_for_the_whole(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, faults=[Fault("stall", count=None, seconds=3600)])

    async def run() -> float:
        async with calling(installed(home, provider, call_seconds=60.0)) as client:
            began = time.monotonic()
            with pytest.raises(ProviderUnavailableError, match="no answer in time"):
                await ask(client, deadline_seconds=0.5)
            return time.monotonic() - began

    assert asyncio.run(run()) < 30


def test_where_all_keys_cool_a_call_waits_at_most_its_deadline(
    home: Path, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "FIRST_PAUSE_SECONDS", 0.01)
    serve_keys(provider, faults=[Fault("rate_limited", count=None, seconds=600)])

    async def run() -> None:
        async with calling(installed(home, provider)) as client:
            with pytest.raises(NoKeyAvailableError):
                await ask(client, deadline_seconds=1.0)

    asyncio.run(run())
    assert provider.report().statuses == {"429": 2}


@pytest.mark.parametrize(
    ("kind", "error"),
    [("refused", ContentRefusedError), ("not_found", SettingsError), ("unknown_parameter", SettingsError)],
)
def test_what_would_fail_again_is_not_repeated(
    kind: str, error: type[VectorizeError], home: Path, provider: ProviderServer
) -> None:
    serve_keys(provider, faults=[Fault(kind, count=None)])

    async def run() -> None:
        async with calling(installed(home, provider)) as client:
            with pytest.raises(error):
                await ask(client)

    asyncio.run(run())
    assert sum(provider.report().statuses.values()) == 1


def test_no_error_repeats_a_key(home: Path, provider: ProviderServer, caplog: pytest.LogCaptureFixture) -> None:
    serve_keys(provider, faults=[Fault("forbidden", count=1), Fault("server_error", contains="x", count=None)])

    async def run() -> str:
        async with calling(installed(home, provider, names=("first",), keys={"max_retry_per_key": 1})) as client:
            with pytest.raises(VectorizeError) as caught:
                await ask(client)
            return str(caught.value)

    caplog.set_level("DEBUG")
    said = asyncio.run(run()) + caplog.text
    assert "first" in said
    assert SECRETS["first"] not in said


def test_limits_of_keys_are_kept_by_calls_side_by_side(home: Path, provider: ProviderServer) -> None:
    limits = {secret: KeyLimits(concurrency=2) for secret in SECRETS.values()}
    provider.reset(keys=limits, answer_seconds=0.05)
    settings = installed(home, provider)
    file = Path(settings.providers.keys_file)
    file.write_text(file.read_text().replace('"name"', '"max_concurrency": 2, "name"'))

    async def run() -> list[CallRecord]:
        async with calling(settings) as client:
            return await asyncio.gather(*(ask(client, f"text {n}") for n in range(40)))

    assert {record.attempts for record in asyncio.run(run())} == {1}
    report = provider.report()
    assert report.violations == 0
    assert {key.most_running for key in report.keys.values()} == {2}


def test_a_call_that_is_cancelled_gives_its_key_back_and_counts_as_nothing(
    home: Path, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "FIRST_PAUSE_SECONDS", 0.01)
    serve_keys(provider, faults=[Fault("server_error"), Fault("stall", seconds=3600)])

    async def run() -> dict[str, Any]:
        async with calling(installed(home, provider, names=("first",))) as client:
            task = asyncio.create_task(ask(client))
            while sum(provider.report().asked.values()) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            return (await client.pool.health_check())["first"]

    health = asyncio.run(run())
    assert health["in_use"] == 0
    assert (health["failures"], health["provider_failures_in_a_row"]) == (0, 1)


def test_who_waits_for_a_key_takes_no_place_from_others(home: Path, provider: ProviderServer) -> None:
    other = RemoteModel("default", "other")
    limited = Fault("rate_limited", key=SECRETS["first"], seconds=600, count=None)
    serve_keys(provider, faults=[limited])
    settings = installed(home, provider, max_concurrency=1)
    file = Path(settings.providers.keys_file)
    keys = json.loads(file.read_text())
    for key, model in zip(keys["keys"], (MODEL, other), strict=True):
        key["models"] = [model.model]
    file.write_text(json.dumps(keys))

    async def run() -> CallRecord:
        async with calling(settings) as client:
            waiting = [asyncio.create_task(ask(client, deadline_seconds=3600)) for _ in range(3)]
            while not (await client.pool.health_check())["first"]["cooling_seconds"]:
                await asyncio.sleep(0.01)
            record = await ask(client, model=other, deadline_seconds=60)
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            return record

    assert asyncio.run(run()).outcome == "completed"


@pytest.mark.slow
def test_a_call_whose_own_time_is_over_says_nothing_about_the_provider(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, faults=[Fault("stall", seconds=3600)])

    async def run() -> int:
        settings = installed(home, provider, names=("first",), call_seconds=60.0, max_concurrency=2)
        async with calling(settings) as client:
            with pytest.raises(ProviderUnavailableError, match="no answer in time"):
                await ask(client, deadline_seconds=0.5)
            serve_keys(provider, answer_seconds=1.0)
            await asyncio.gather(ask(client), ask(client))
            return int((await client.pool.health_check())["first"]["provider_failures"])

    assert asyncio.run(run()) == 0
    assert provider.report().keys[SECRETS["first"]].most_running == 2


@pytest.mark.parametrize("kind", ["html", "empty"])
def test_a_response_that_is_none_is_asked_again(kind: str, home: Path, provider: ProviderServer) -> None:
    """Status 200 does not make a page of some portal, or an empty object, an answer."""
    serve_keys(provider, faults=[Fault(kind)])

    async def run() -> int:
        async with calling(installed(home, provider)) as client:
            return len(await EmbeddingModel(client, MODEL).probe())

    assert asyncio.run(run()) == 32
    assert provider.report().statuses == {"200": 2}
