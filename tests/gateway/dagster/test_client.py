"""GraphQL calls of the server's own, to a web server in Dagster's place."""

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from starlette.responses import JSONResponse, RedirectResponse, Response

from tests.gateway.dagster.upstream import Upstream
from tests.gateway.running import running
from tests.servers.ports import free_ports
from vectorize_pipelines.errors import DagsterUnavailableError
from vectorize_pipelines.gateway.dagster.client import DagsterAddress, DagsterClient


@pytest.fixture(scope="module")
def app() -> Upstream:
    return Upstream()


@pytest.fixture(scope="module")
def url(app: Upstream) -> Iterator[str]:
    with running(app) as url:
        yield url


@pytest.fixture
def upstream(app: Upstream) -> Upstream:
    """The server, which knows of no earlier test."""
    vars(app).update(vars(Upstream()))
    return app


def query(url: str) -> dict[str, Any]:
    async def ask() -> dict[str, Any]:
        async with DagsterClient(DagsterAddress(url)) as client:
            return await client.query("{version}")

    return asyncio.run(ask())


def test_the_data_of_a_query(url: str, upstream: Upstream) -> None:
    upstream.answer = JSONResponse({"data": {"version": "1"}})
    assert query(url) == {"version": "1"}
    (got,) = upstream.got
    assert (got.method, got.path) == ("POST", "/dagster/graphql")


def test_who_calls_is_said_where_the_address_says_it(url: str, upstream: Upstream) -> None:
    upstream.answer = JSONResponse({"data": {}})
    query(url.replace("http://", "http://user:word@"))
    assert upstream.got[0].headers["authorization"] == aiohttp.encode_basic_auth("user", "word")


@pytest.mark.parametrize(
    "answer",
    [
        RedirectResponse("/elsewhere", 307),
        Response(status_code=204),
        JSONResponse(["no", "object"]),
        Response("no JSON"),
        JSONResponse({"data": None}, 500),
        JSONResponse({"errors": [{"message": "wrong"}]}),
    ],
    ids=["a redirect", "nothing", "a list", "text", "a failure", "an error"],
)
def test_what_is_no_answer_of_dagster_is_an_error_and_asked_once(
    url: str, upstream: Upstream, answer: Response
) -> None:
    upstream.answer = answer
    with pytest.raises(DagsterUnavailableError):
        query(url)
    assert len(upstream.got) == 1


def test_where_nobody_listens_nothing_can_have_been_received() -> None:
    (port,) = free_ports(1)
    with pytest.raises(DagsterUnavailableError) as failed:
        query(f"http://127.0.0.1:{port}")
    assert isinstance(failed.value.__cause__, aiohttp.ClientConnectorError)
