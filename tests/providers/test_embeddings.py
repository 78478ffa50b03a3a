"""Requests for embeddings: what does not say whose vector is whose is no response; tokens are divided whole."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.installation import calling, installed, serve_keys
from tests.servers.provider import ProviderServer
from vectorize_pipelines.errors import TooManyTokensError
from vectorize_pipelines.providers.embeddings import Embedded, EmbeddingModel, divide_tokens, read_vectors
from vectorize_pipelines.providers.failures import MalformedResponseError
from vectorize_pipelines.providers.models import RemoteModel


def response(*vectors: tuple[int | None, object]) -> SimpleNamespace:
    return SimpleNamespace(data=[SimpleNamespace(index=index, embedding=vector) for index, vector in vectors])


@given(st.permutations(range(5)))
def test_vectors_come_in_the_order_of_their_inputs(order: list[int]) -> None:
    vectors = read_vectors(response(*((n, [float(n)]) for n in order)), 5)
    assert [list(vector) for vector in vectors] == [[0.0], [1.0], [2.0], [3.0], [4.0]]


def test_without_numbers_their_order_counts() -> None:
    vectors = read_vectors(response((None, [2.0]), (None, [1.0])), 2)
    assert [list(vector) for vector in vectors] == [[2.0], [1.0]]


@pytest.mark.parametrize(
    "content",
    [
        "<html>a portal</html>",
        SimpleNamespace(data=None),
        response((0, [1.0])),
        response((0, [1.0]), (0, [2.0])),
        response((0, [1.0]), (2, [2.0])),
        response((0, [1.0]), (1, [2.0, 3.0])),
        response((0, [1.0]), (1, [])),
        response((0, [1.0]), (1, None)),
        response((0, [1.0]), (1, ["a"])),
        response((0, [1.0]), (1, [float("nan")])),
    ],
)
def test_what_is_no_response(content: object) -> None:
    with pytest.raises(MalformedResponseError):
        read_vectors(content, 2)


def test_requests_are_cut_to_what_a_key_may_take_and_an_input_that_is_larger_fails_alone(
    home: Path, provider: ProviderServer
) -> None:
    serve_keys(provider)
    settings = installed(home, provider, names=("first",))
    file = Path(settings.providers.keys_file)
    file.write_text(file.read_text().replace('"name"', '"tpm_limit": 5000, "name"'))
    tokens = [100] * 70
    tokens[30] = 5001

    async def run() -> Embedded:
        async with calling(settings) as client:
            model = EmbeddingModel(client, RemoteModel("default", "model"))
            return await model.embed([f"text {n}" for n in range(70)], tokens)

    done = asyncio.run(run())
    assert [n for n, vector in enumerate(done.vectors) if vector is None] == [30]
    assert list(done.errors) == [30]
    assert isinstance(done.errors[30], TooManyTokensError)
    assert len({vector.tobytes() for vector in done.vectors if vector is not None}) == 69


@given(st.integers(0, 10**6), st.lists(st.integers(1, 10**4), min_size=1))
def test_shares_add_up_and_follow_the_weights(total: int, weights: list[int]) -> None:
    shares = divide_tokens(total, weights)
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * weight / sum(weights)) <= 1
