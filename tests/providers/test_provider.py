"""The provider of the tests itself: it enforces limits in sliding windows, and counts what exceeds them."""

import asyncio

from openai import AsyncOpenAI, RateLimitError

from tests.servers.provider import Fault, KeyLimits, ProviderServer


def ask(provider: ProviderServer, number: int, key: str = "key") -> list[object]:
    """Send requests side by side, none repeated."""

    async def run() -> list[object]:
        async with AsyncOpenAI(api_key=key, base_url=provider.url, max_retries=0) as openai:
            calls = (openai.embeddings.create(model="m", input=[f"{n}"]) for n in range(number))
            return list(await asyncio.gather(*calls, return_exceptions=True))

    return asyncio.run(run())


def test_what_exceeds_a_limit_is_refused_and_counted(provider: ProviderServer) -> None:
    provider.reset(keys={"key": KeyLimits(rpm=5), "other": KeyLimits(tpm=3)})
    answers = ask(provider, 8)
    assert sum(isinstance(answer, RateLimitError) for answer in answers) == 3
    assert sum(isinstance(answer, RateLimitError) for answer in ask(provider, 4, "other")) == 1
    report = provider.report()
    assert report.keys["key"].violations == {"rpm": 3}
    assert report.keys["other"].violations == {"tpm": 1}
    assert (report.violations, report.statuses) == (4, {"200": 8, "429": 4})


def test_a_window_slides(provider: ProviderServer) -> None:
    provider.reset(keys={"key": KeyLimits(qps=2)}, second=0.3)
    assert sum(isinstance(answer, RateLimitError) for answer in ask(provider, 3)) == 1
    while any(isinstance(answer, RateLimitError) for answer in ask(provider, 1)):
        pass
    assert provider.report().keys["key"].accepted == 3


def test_concurrency_is_a_limit_too(provider: ProviderServer) -> None:
    provider.reset(keys={"key": KeyLimits(concurrency=2)}, answer_seconds=0.3)
    ask(provider, 5)
    key = provider.report().keys["key"]
    assert (key.most_running, key.violations) == (2, {"concurrency": 3})


def test_faults_come_as_they_are_planned(provider: ProviderServer) -> None:
    provider.reset(keys={"key": KeyLimits()}, faults=[Fault("server_error", every=2, count=2)])
    for _ in range(6):
        ask(provider, 1)
    assert provider.report().statuses == {"200": 4, "500": 2}
