"""Requests of many callers on one encoder: each gets its own, in a fair order, whatever becomes of the others."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.encoding.held_encoder import (
    DIMENSION,
    NUMBERLESS,
    POISON,
    REFUSED,
    SECONDS,
    HeldEncoder,
    Models,
    vector_of,
)
from vectorize_pipelines.encoders.base import Encoder, Purpose
from vectorize_pipelines.encoders.truncation import cut
from vectorize_pipelines.errors import ItemError, ModelTooLargeError, UnknownModelError
from vectorize_pipelines.gateway.encoding import lane as encoding_lane
from vectorize_pipelines.gateway.encoding.batching import URGENT_IN_A_ROW, EncodingQueue
from vectorize_pipelines.gateway.encoding.calls import EncoderFailedError
from vectorize_pipelines.gateway.encoding.lane import FEW_TEXTS, FIRST_TOKENS, DimensionError, Encoded
from vectorize_pipelines.gateway.problems import Problem

Result = TypeVar("Result")

#: A text that fills a call of its own.
LONG = "word " * FIRST_TOKENS

MODEL = "held"


@pytest.fixture
def calls_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the encoder is, no call becomes larger than the first."""
    monkeypatch.setattr(encoding_lane, "MOST_TOKENS", FIRST_TOKENS)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` returns, which is not to hang."""
    return asyncio.run(asyncio.wait_for(work, SECONDS))


def queue(models: Models, most_waiting: int = 100_000, *, calls: int = 1, keep_seconds: float = 60.0) -> EncodingQueue:
    return EncodingQueue(models.lease, most_waiting, calls=calls, keep_seconds=keep_seconds)


def sent(
    encoding: EncodingQueue,
    *texts: str | bytes,
    model: str = MODEL,
    purpose: Purpose = "document",
    dimension: int | None = None,
) -> "asyncio.Task[Encoded]":
    """A request, which waits for its turn once the event loop has had one."""
    return asyncio.create_task(encoding.encode(model, texts, purpose, dimension))


async def held(encoding: EncodingQueue, encoder: HeldEncoder, text: str = "the first") -> "asyncio.Task[Encoded]":
    """A request whose call has begun, and does not end before the encoder is let go."""
    encoder.hold()
    task = sent(encoding, text)
    await encoder.begun()
    return task


def many(name: str, count: int = FEW_TEXTS + 1, *, padding: str = "") -> list[str]:
    """Texts of a request that is not urgent."""
    return [f"{name} {number} {padding}" for number in range(count)]


def check(answer: Encoded, texts: Sequence[str | bytes], purpose: Purpose = "document") -> None:
    vectors, tokens = answer
    np.testing.assert_array_equal(vectors, np.stack([vector_of(text, purpose) for text in texts]))
    assert [count.seen for count in tokens] == [len(text.split()) if isinstance(text, str) else 0 for text in texts]


@dataclass(frozen=True)
class Caller:
    """Texts by the number of their words, and after how many rounds of the event loop the caller gives up."""

    lengths: list[int]
    purpose: Purpose
    dimension: int | None
    gone_after: int | None

    def texts(self, name: str) -> list[str]:
        return [f"{name} {number} {'x ' * length}" for number, length in enumerate(self.lengths)]


CALLERS = st.lists(
    st.builds(
        Caller,
        st.lists(st.sampled_from([0, 20, 1500, 9000]), min_size=1, max_size=25),
        st.sampled_from(["document", "query"]),
        st.sampled_from([None, 3, DIMENSION]),
        st.none() | st.integers(0, 6),
    ),
    min_size=1,
    max_size=8,
)


@given(CALLERS, st.integers(1, 3))
def test_every_caller_gets_the_vectors_of_its_own_texts(callers: list[Caller], calls: int) -> None:
    encoder = HeldEncoder()

    async def answers() -> list[Encoded | BaseException]:
        async with queue(Models(encoder), calls=calls) as encoding:
            tasks = [
                sent(encoding, *each.texts(str(n)), purpose=each.purpose, dimension=each.dimension)
                for n, each in enumerate(callers)
            ]
            for step in range(8):
                await asyncio.sleep(0)
                for task, each in zip(tasks, callers, strict=True):
                    if each.gone_after == step:
                        task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert encoding.waiting == 0
            return done

    for n, (each, answer) in enumerate(zip(callers, run(answers()), strict=True)):
        if each.gone_after is not None and isinstance(answer, asyncio.CancelledError):
            continue
        assert not isinstance(answer, BaseException), answer
        vectors, tokens = answer
        texts = each.texts(str(n))
        whole = np.stack([vector_of(text, each.purpose) for text in texts])
        wanted = whole if each.dimension in (None, DIMENSION) else cut(whole, each.dimension or 0)
        np.testing.assert_array_equal(vectors, wanted)
        assert [count.seen for count in tokens] == [len(text.split()) for text in texts]


def test_what_gathers_during_a_call_is_encoded_together() -> None:
    encoder = HeldEncoder()

    async def main() -> None:
        async with queue(Models(encoder)) as encoding:
            first = await held(encoding, encoder)
            others = [sent(encoding, f"text {n}") for n in range(64)]
            await asyncio.sleep(0)
            encoder.let_go()
            check(await first, ["the first"])
            for n, task in enumerate(others):
                check(await task, [f"text {n}"])
        assert len(encoder.calls) == 2

    run(main())


def test_queries_and_documents_are_put_together_only_where_the_model_takes_them_for_the_same() -> None:
    encoder = HeldEncoder()

    async def main() -> None:
        async with queue(Models(encoder)) as encoding:
            first = await held(encoding, encoder)
            tasks = [sent(encoding, f"text {n}", purpose="query" if n % 2 else "document") for n in range(8)]
            await asyncio.sleep(0)
            encoder.let_go()
            await first
            for n, task in enumerate(tasks):
                check(await task, [f"text {n}"], "query" if n % 2 else "document")
        assert [sorted(map(str, call)) for call in encoder.calls[1:]] == [
            [f"text {n}" for n in range(0, 8, 2)],
            [f"text {n}" for n in range(1, 8, 2)],
        ]

    run(main())


def test_a_query_waits_for_no_more_than_the_part_under_way() -> None:
    encoder = HeldEncoder()

    async def main() -> None:
        async with queue(Models(encoder)) as encoding:
            encoder.hold()
            texts = many("bulk", padding=LONG)
            bulk = sent(encoding, *texts)
            await encoder.begun()
            query = sent(encoding, "a question", purpose="query")
            await asyncio.sleep(0)
            encoder.let_go()
            check(await query, ["a question"], "query")
            check(await bulk, texts)
        assert len(encoder.calls[0]) < len(texts)
        assert encoder.calls[1] == ["a question"]

    run(main())


def test_a_thread_is_kept_for_what_is_urgent() -> None:
    encoder = HeldEncoder()

    async def main() -> None:
        async with queue(Models(encoder), calls=2) as encoding:
            encoder.hold()
            bulk = [sent(encoding, *many(name, padding=LONG)) for name in "ab"]
            await encoder.begun()
            query = sent(encoding, "a question")
            await encoder.begun()
            assert encoder.calls[1] == ["a question"]
            encoder.let_go()
            await asyncio.gather(query, *bulk)

    run(main())


def test_large_requests_are_not_starved_by_small_ones(calls_of_one_size: None) -> None:
    encoder = HeldEncoder()

    async def main() -> None:
        async with queue(Models(encoder)) as encoding:
            first = await held(encoding, encoder)
            bulk = sent(encoding, *many("bulk"))
            urgent = [sent(encoding, f"{n} {LONG[:16_000]}") for n in range(4 * URGENT_IN_A_ROW)]  # each fills a call
            await asyncio.sleep(0)
            encoder.let_go()
            await asyncio.gather(first, bulk, *urgent)
        turn = [len(call) > 1 for call in encoder.calls[1:]].index(True)
        assert turn == URGENT_IN_A_ROW

    run(main())


def test_large_requests_take_turns(calls_of_one_size: None) -> None:
    encoder = HeldEncoder()

    async def main() -> None:
        async with queue(Models(encoder)) as encoding:
            first = await held(encoding, encoder)
            names = "abc"
            bulk = [sent(encoding, *many(name, padding=LONG)) for name in names]
            await asyncio.sleep(0)
            encoder.let_go()
            await asyncio.gather(first, *bulk)
        assert [str(call[0])[0] for call in encoder.calls[1:]] == list(names) * (FEW_TEXTS + 1)

    run(main())


def test_what_nobody_waits_for_any_more_is_not_encoded() -> None:
    encoder = HeldEncoder()

    async def main() -> None:
        async with queue(Models(encoder)) as encoding:
            first = await held(encoding, encoder)
            gone = [sent(encoding, f"gone {n}") for n in range(3)] + [sent(encoding, *many("gone"))]
            stays = sent(encoding, "stays")
            await asyncio.sleep(0)
            for task in gone:
                task.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            assert encoding.waiting == 1
            encoder.let_go()
            check(await first, ["the first"])
            check(await stays, ["stays"])
        assert encoder.calls == [["the first"], ["stays"]]

    run(main())


def test_who_gives_up_during_the_call_disturbs_nobody() -> None:
    encoder = HeldEncoder()

    async def main() -> None:
        async with queue(Models(encoder)) as encoding:
            first = await held(encoding, encoder)
            await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            encoder.let_go()
            check(await encoding.encode(MODEL, ["another"]), ["another"])
            assert encoding.waiting == 0

    run(main())


def test_a_full_queue_says_when_to_come_again() -> None:
    encoder = HeldEncoder()

    async def main() -> None:
        async with queue(Models(encoder), 40) as encoding:
            first = await held(encoding, encoder)
            waiting = [sent(encoding, *many("bulk", 20))]
            await asyncio.sleep(0)
            with pytest.raises(Problem) as full:
                await encoding.encode(MODEL, many("another", 20))
            assert full.value.status is HTTPStatus.TOO_MANY_REQUESTS
            assert int(full.value.headers["Retry-After"]) >= 1
            # Small requests have room that large ones have not.
            waiting += [sent(encoding, *many("small", FEW_TEXTS)), sent(encoding, *many("smaller", 4))]
            await asyncio.sleep(0)
            with pytest.raises(Problem) as fuller:
                await encoding.encode(MODEL, ["one more"])
            assert fuller.value.status is HTTPStatus.TOO_MANY_REQUESTS
            encoder.let_go()
            await asyncio.gather(first, *waiting)
            check(await encoding.encode(MODEL, ["one more"]), ["one more"])

    run(main())


def test_what_will_never_fit_is_not_told_to_come_again() -> None:
    async def main() -> None:
        async with queue(Models(HeldEncoder()), 40) as encoding:
            with pytest.raises(Problem) as refused:
                await encoding.encode(MODEL, many("bulk", 36))
            assert refused.value.status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            assert encoding.waiting == 0

    run(main())


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (f"{REFUSED} by the model", ItemError, "item 1: it is refused"),
        (POISON, EncoderFailedError, "log of the server"),
        (NUMBERLESS, EncoderFailedError, "no numbers"),
    ],
)
def test_what_fails_fails_its_own_request(bad: str, error: type[Exception], message: str) -> None:
    encoder = HeldEncoder()

    async def main() -> None:
        async with queue(Models(encoder)) as encoding:
            first = await held(encoding, encoder)
            failing = sent(encoding, "good", bad)
            others = [sent(encoding, f"text {n}", "and more") for n in range(5)]
            await asyncio.sleep(0)
            encoder.let_go()
            with pytest.raises(error, match=message) as raised:
                await failing
            assert "secret" not in str(raised.value)
            check(await first, ["the first"])
            for n, task in enumerate(others):
                check(await task, [f"text {n}", "and more"])
            assert encoding.waiting == 0
        assert len(encoder.calls[1]) == 12, "they were in one call"

    run(main())


def test_a_part_that_fails_ends_the_request() -> None:
    encoder = HeldEncoder()

    async def main() -> None:
        async with queue(Models(encoder)) as encoding:
            # Longest first: the one that fails is in the first part.
            failing = sent(encoding, *many("bulk", padding=LONG), f"{REFUSED} {LONG * 2}")
            with pytest.raises(ItemError, match=f"item {FEW_TEXTS + 1}: it is refused"):
                await failing
            assert encoding.waiting == 0
        assert len(encoder.calls) == 1

    run(main())


@pytest.mark.parametrize("loaded", [True, False])
def test_what_the_model_has_not(loaded: bool) -> None:
    encoder = HeldEncoder()

    async def main() -> None:
        async with queue(Models(encoder)) as encoding:
            if loaded:
                await encoding.encode(MODEL, ["a text"])
            with pytest.raises(DimensionError, match="8 dimensions, which cannot be cut to 9"):
                await encoding.encode(MODEL, ["a text"], "document", 9)
            with pytest.raises(ItemError, match="text only"):
                await encoding.encode(MODEL, ["a text", b"an image"])
            with pytest.raises(ItemError, match="nothing"):
                await encoding.encode(MODEL, [])
            assert encoding.waiting == 0

    run(main())


def test_images_beside_texts() -> None:
    encoder = HeldEncoder(images=True)

    async def main() -> None:
        async with queue(Models(encoder)) as encoding:
            check(
                await encoding.encode(MODEL, ["a text", b"an image", "and a text"]),
                ["a text", b"an image", "and a text"],
            )

    run(main())


def test_a_model_that_cannot_be_loaded_is_the_fault_of_nobody_else() -> None:
    encoder = HeldEncoder()
    models = Models(encoder)

    @contextmanager
    def lease(model: str) -> Iterator[Encoder]:
        if model == "missing":
            raise UnknownModelError("there is no such model")
        if model == "broken":
            raise OSError("a secret of the server's")
        with models.lease(model) as found:
            yield found

    async def main() -> None:
        async with EncodingQueue(lease, 100) as encoding:
            missing, broken, there = (sent(encoding, "a text", model=each) for each in ("missing", "broken", MODEL))
            check(await there, ["a text"])
            with pytest.raises(UnknownModelError, match="no such model"):
                await missing
            with pytest.raises(EncoderFailedError, match="log of the server"):
                await broken
            with pytest.raises(UnknownModelError, match="no such model"):
                await encoding.encode("missing", ["another text"])
            assert encoding.waiting == 0

    run(main())


def test_loading_a_model_holds_up_nobody_else() -> None:
    models = Models(HeldEncoder(), HeldEncoder("slow"))
    loads = threading.Event()

    @contextmanager
    def lease(model: str) -> Iterator[Encoder]:
        if model == "slow":
            assert loads.wait(SECONDS)
        with models.lease(model) as found:
            yield found

    async def main() -> None:
        async with EncodingQueue(lease, 100) as encoding:
            slow = [sent(encoding, f"text {n}", model="slow") for n in range(3)]
            check(await encoding.encode(MODEL, ["a text"]), ["a text"])
            loads.set()
            for n, task in enumerate(slow):
                check(await task, [f"text {n}"])
        assert models.loads.count("slow") == 1

    run(main())


def test_models_that_nobody_uses_make_room() -> None:
    first, second = HeldEncoder("first"), HeldEncoder("second")
    models = Models(first, second)

    @contextmanager
    def lease(model: str) -> Iterator[Encoder]:
        if models.leased:
            raise ModelTooLargeError("there is room for one")
        with models.lease(model) as found:
            yield found

    async def main() -> None:
        async with EncodingQueue(lease, 100) as encoding:
            for model in ("first", "second", "first"):
                check(await encoding.encode(model, ["a text"]), ["a text"])
                assert models.leased == [model]
            first.hold()
            used = sent(encoding, "a long text", model="first")
            await first.begun()
            with pytest.raises(ModelTooLargeError):
                await encoding.encode("second", ["a text"])
            first.let_go()
            check(await used, ["a long text"])
        assert models.leased == []

    run(main())


def test_a_model_is_kept_for_a_while() -> None:
    models = Models(HeldEncoder())

    async def main() -> None:
        async with queue(models, keep_seconds=60.0) as encoding:
            for n in range(3):
                await encoding.encode(MODEL, [f"text {n}"])
            assert models.loads == models.leased == [MODEL]
        assert models.leased == []
        async with queue(models, keep_seconds=0.0) as encoding:
            returned = models.returned
            while returned.acquire(blocking=False):
                pass
            await encoding.encode(MODEL, ["a text"])
            assert await asyncio.to_thread(returned.acquire, timeout=SECONDS)
            check(await encoding.encode(MODEL, ["another"]), ["another"])

    run(main())


def test_the_end_waits_for_calls_and_refuses_the_rest() -> None:
    encoder = HeldEncoder()
    models = Models(encoder)

    async def main() -> None:
        encoding = queue(models)
        await encoding.__aenter__()
        first = await held(encoding, encoder)
        waits = sent(encoding, "waits")
        await asyncio.sleep(0)
        ending = asyncio.create_task(encoding.__aexit__(None, None, None))
        with pytest.raises(Problem) as refused:
            await waits
        assert refused.value.status is HTTPStatus.SERVICE_UNAVAILABLE
        with pytest.raises(Problem):
            await encoding.encode(MODEL, ["too late"])
        assert models.leased == [MODEL]
        encoder.let_go()
        check(await first, ["the first"])
        await ending
        assert models.leased == []
        assert encoder.calls == [["the first"]]

    run(main())
