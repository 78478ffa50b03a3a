"""Calls survive what providers do: each fault by a real server, keys of a real pool."""

import asyncio
import time
from pathlib import Path

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
from vectorize_pipelines.providers.models import RemoteModel

MODEL = RemoteModel("default", "judge")


async def ask(client: ProviderClient, text: str = "a text", deadline_seconds: float = 20.0) -> CallRecord:
    async def send(openai: AsyncOpenAI) -> tuple[str, Usage]:
        response = await openai.embeddings.create(model=MODEL.model, input=[text], encoding_format="float")
        return "answered", Usage(response.usage.prompt_tokens)

    response, record = await client.call(Call(MODEL, 10, deadline_seconds), send)
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
        faults=[Fault("rate_limited", key=SECRETS["first"], header="date", seconds=3, count=None)],
        clock_skew_seconds=-5,
    )

    async def run() -> tuple[list[str], float]:
        settings = installed(home, provider, keys={"strategy": "priority", "default_cooldown": 600})
        async with calling(settings) as client:
            records = [await ask(client) for _ in range(5)]
            health = await client.pool.health_check()
            return [record.key_name for record in records], health["first"]["next_available_seconds"]

    names, seconds = asyncio.run(run())
    assert names == ["second"] * 5
    assert 0 < seconds <= 3  # an HTTP date has whole seconds
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


def test_the_deadline_is_for_the_whole(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, faults=[Fault("stall", count=None, seconds=3600)])

    async def run() -> float:
        async with calling(installed(home, provider, call_seconds=60.0)) as client:
            began = time.monotonic()
            with pytest.raises(ProviderUnavailableError, match="no answer in time"):
                await ask(client, deadline_seconds=0.5)
            return time.monotonic() - began

    assert asyncio.run(run()) < 30


def test_where_all_keys_cool_a_call_waits_at_most_its_deadline(home: Path, provider: ProviderServer) -> None:
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


def test_a_call_that_is_cancelled_gives_its_key_back(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, faults=[Fault("stall", seconds=3600)])

    async def run() -> int:
        async with calling(installed(home, provider, names=("first",))) as client:
            task = asyncio.create_task(ask(client))
            while not (await client.pool.health_check())["first"]["in_use"]:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            return int((await client.pool.health_check())["first"]["in_use"])

    assert asyncio.run(run()) == 0
