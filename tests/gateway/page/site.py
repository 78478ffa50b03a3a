"""What the page is tried on: a server with the real page that answers as the real routes do, from data of the tests.

`Site` is what tests of the page need of a server. They set its switches to have it refuse, fail or change.
"""

import asyncio
import io
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from PIL import Image
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.gateway.running import running, until
from vectorize_pipelines.gateway import problems
from vectorize_pipelines.gateway.door.auth import Caller
from vectorize_pipelines.gateway.door.auth import Scope as TokenScope
from vectorize_pipelines.gateway.page import answer_signin
from vectorize_pipelines.gateway.problems import FieldProblem, Problem
from vectorize_pipelines.gateway.routes import pages

MODEL = "sentence-transformers/all-MiniLM-L6-v2@c9745ed dim=384 pooling=mean max_length=256 normalized=true"
CHUNKER = "tokens/1 max=256 overlap=32 parser=7"
RUN = "5b2f0c1e-9f0e-4c58-8d0a-3f6a2c7f9e11"
NOW = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
#: Each runs a script wherever a page takes a text for markup.
ATTACKS = (
    "<img src=x onerror=\"window.hacked='img'\">",
    "<script>window.hacked='script'</script>",
    '"><svg onload="window.hacked=\'svg\'">',
    "'); window.hacked='code'; ('",
)
_OPEN = ("/signin", "/static/")


def record(number: int, text: str | None, **fields: Any) -> dict[str, Any]:
    """A hit, but for its score; a document's unless `fields` say otherwise."""
    made = {
        "id": f"0b0b0b0b-0000-5000-8000-{number:012d}",
        "source_id": f"visitors/note-{number}.md",
        "item_index": number,
        "modality": "document",
        "text": text,
        "uri": f"/srv/corpus/visitors/note-{number}.md",
        "page": None,
        "start": 1200,
        "end": 1200 + len(text or ""),
        "content_hash": f"{number:032x}",
        "model": f"{MODEL} chunker={CHUNKER}",
        "occurred_at": "2026-11-20T08:00:00+00:00",
        "partition": "2026-11-20",
        "run_id": RUN,
        "embedded_at": "2026-11-21T09:15:30.250000+00:00",
        "metadata": {},
    }
    return made | fields


BOATS = record(
    1,
    "The supply boat lands at the north jetty on Tuesdays, weather permitting. Visitors to the LIGHTHOUSE are asked "
    "to be there half an hour before; boats do not wait.",
    source_id="visitors/visitor-faq.html",
    uri="https://lighthouse.example/visitors/visitor-faq.html",
    page=3,
    metadata={"title": "Visitor FAQ", "section": "Getting there > By boat", "language": "en", "year": 2026},
)
DOCUMENTS = [
    BOATS,
    record(
        2,
        "The lamp of the lighthouse burns paraffin. Its lens turns once in thirty seconds on a bath of mercury, and is "
        "cleaned with spirit on Mondays. " * 12,
        metadata={"title": "Operations manual", "section": "The lamp", "language": "en", "year": 2024},
    ),
    record(3, "灯塔建于1897年，灯高四十二米。", metadata={"title": "灯塔", "language": "zh", "year": 2025}),
    record(4, "Turbine blade, 2.4 m, two in stock", metadata={"row": 17, "part": "TB-24", "language": "en"}),
]
HOSTILE = [
    record(
        10 + number,
        f"hostile {attack}",
        source_id=attack,
        uri=("javascript:window.hacked='uri'" if number % 2 else f"https://a.example/{attack}"),
        run_id=attack,
        model=attack,
        metadata={"title": attack, "section": attack, attack: attack, "language": attack, "__proto__": attack},
    )
    for number, attack in enumerate(ATTACKS)
]
PICTURES = [
    record(
        20 + number,
        None,
        modality="image",
        start=None,
        end=None,
        model="ViT-B/32@openai dim=512 normalized=true",
        uri=f"/srv/pictures/boat-{number}.jpg",
        source_id=f"boat-{number}.jpg",
        metadata={"name": f"boat-{number}.jpg", "format": "jpeg", "width": 640, "height": 480},
    )
    for number in range(6)
]
COLLECTIONS = {"corpus": DOCUMENTS, "gallery": PICTURES, "hostile": HOSTILE}


def task(number: int, status: str, **fields: Any) -> dict[str, Any]:
    """A request as the list has it; the higher its number, the newer."""
    created = NOW - timedelta(hours=24) + timedelta(minutes=number)
    made = {
        "task_id": f"order-{number}",
        "task_type": "text_vectorization",
        "status": status,
        "progress": 1.0 if status == "completed" else 0.0,
        "created_at": created.isoformat(),
        "started_at": None,
        "completed_at": None,
        "processing_time": None,
        "estimated_processing_time": None,
        "error": None,
        "result": None,
        "metadata": {},
        "run_id": None if status == "pending" else RUN,
        "run_url": None if status == "pending" else f"/dagster/runs/{RUN}",
        "modality": "text",
        "collection": "notes",
        "items": 1,
    }
    if status == "completed":
        made |= {"processing_time": 1.234, "result": {"collection": "notes", "vector_count": 1}}
    return made | fields


def some_tasks() -> list[dict[str, Any]]:
    """More than two pages of requests, newest first, with one in each state at the top."""
    failure = {"class": "UnreadableFileError", "message": "https://example.com/a.pdf: the server answers 404"}
    newest = [
        task(505, "pending"),
        task(504, "processing", task_type="batch_vectorization", items=400, progress=0.42),
        task(503, "failed", task_type="document_vectorization", error=failure),
        task(502, "cancelled"),
        task(501, "completed", task_type="image_vectorization"),
    ]
    return newest + [task(number, "completed") for number in range(120, 0, -1)]


@dataclass
class Site:
    """A server that the page is opened on, and what a test may have it do.

    caller       who calls; None: nobody is signed in
    failures     path -> the answer to everything that is asked of it
    asked        bodies of searches
    """

    url: str = ""
    caller: Caller | None = field(default_factory=lambda: Caller.of("anonymous", TokenScope.ADMIN))
    collections: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: dict(COLLECTIONS))
    tasks: list[dict[str, Any]] = field(default_factory=some_tasks)
    failures: dict[str, Problem] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    streams: set["asyncio.Queue[str | None]"] = field(default_factory=set)
    loop: asyncio.AbstractEventLoop | None = None

    def begin_again(self) -> None:
        """Forget what a test has set and changed, once nobody follows the events any more."""
        self.send(None)
        until(lambda: not self.streams)
        new = Site()
        self.caller, self.collections, self.tasks = new.caller, new.collections, new.tasks
        self.failures, self.asked = new.failures, new.asked

    def change(self, task_id: str, status: str, *, says: bool = True, **fields: Any) -> None:
        """Have a request come to a state; without `says` no event tells so."""
        (found,) = (each for each in self.tasks if each["task_id"] == task_id)
        found |= {"status": status, **fields}
        names = ("task_id", "status", "collection", "error", "run_id")
        event = {name: found[name] for name in names} | {"vector_count": found["items"], "timestamp": NOW.isoformat()}
        if says:
            self.send(f"event: status\nid: 1\ndata: {json.dumps(event)}\n\n")

    def send(self, text: str | None) -> None:
        """Send something to whoever follows the events; None: break the connections."""
        if self.loop is not None:
            for stream in tuple(self.streams):
                self.loop.call_soon_threadsafe(stream.put_nowait, text)


@contextmanager
def site() -> Iterator[Site]:
    """A running server."""
    made = Site()
    with running(_guarded(_application(made), made)) as made.url:
        yield made
        made.send(None)


def _guarded(app: ASGIApp, made: Site) -> ASGIApp:
    """The caller's name for the routes, and the answers that a test has set."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        made.loop = asyncio.get_running_loop()
        path = scope["path"]
        failure = made.failures.get(path)
        if made.caller is None and not path.startswith(_OPEN):
            failure = Problem(HTTPStatus.UNAUTHORIZED, "no token", headers={"WWW-Authenticate": "Bearer"})
        if failure is not None:
            await failure.response(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = made.caller
        await app(scope, receive, send)

    return guarded


def _application(made: Site) -> FastAPI:
    app = FastAPI(title="vectorize-pipelines", version="1.2.3", docs_url=None, redoc_url=None)
    problems.install(app)
    app.include_router(pages.router)
    _add_search(app, made)
    _add_tasks(app, made)

    @app.get("/signin")
    def signin(next: str = "/") -> Response:  # noqa: A002 -- the name of the parameter
        return answer_signin(next, "This token is not known.")

    return app


def _add_search(app: FastAPI, made: Site) -> None:
    @app.get("/collections")
    def collections() -> dict[str, Any]:
        return {
            "collections": [
                {
                    "name": name,
                    "physical": f"{name}__m",
                    "store": "lancedb",
                    "model": "m",
                    "dimension": 384,
                    "rows": len(rows),
                    "has_images": any(row["modality"] == "image" for row in rows),
                }
                for name, rows in made.collections.items()
            ]
        }

    @app.post("/collections/{name}/search")
    def search(name: str, body: dict[str, Any]) -> dict[str, Any]:
        made.asked.append(body)
        if name not in made.collections:
            raise Problem(HTTPStatus.NOT_FOUND, f"there is no collection {name!r}")
        rows = _filtered(made.collections[name], body["filter"])
        hits = [{"score": _score(row, body), **row} for row in rows]
        found = sorted((hit for hit in hits if hit["score"] > 0), key=lambda hit: -hit["score"])
        return {"collection": name, "model": "m", "hits": found[: body["limit"]]}

    @app.get("/collections/{name}/rows/{row}/thumbnail")
    def thumbnail(name: str, row: str) -> Response:
        number = int(row[-1])
        if number == len(PICTURES) - 1:
            raise Problem(HTTPStatus.NOT_FOUND, "the file is gone")
        content = io.BytesIO()
        Image.new("RGB", (320, 240), (30 + 30 * number, 110, 120)).save(content, "JPEG")
        return Response(content.getvalue(), media_type="image/jpeg")


def _filtered(rows: list[dict[str, Any]], given: str | None) -> list[dict[str, Any]]:
    if given is None:
        return rows
    name, equals, value = (part.strip() for part in given.partition("="))
    if not equals:
        problem = "expected =, found the end; a filter is FIELD=VALUE, such as language=en"
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"filter: {problem}",
            errors=[FieldProblem(field="filter", problem=problem)],
        )
    return [row for row in rows if str(row["metadata"].get(name, row.get(name))) == value]


def _score(row: dict[str, Any], body: dict[str, Any]) -> float:
    """The more of the query's words a row has, the nearer it is; all images are near to an image, and to a text."""
    if row["modality"] == "image":
        index: int = row["item_index"]
        return round(0.9 - index / 100, 6)
    wanted = set(re.findall(r"\w+", body["query"].lower()))
    found = [word for word in wanted if word in row["text"].lower()]
    return round(len(found) / len(wanted) * 0.9 + 0.05, 6) if found else 0.0


def _add_tasks(app: FastAPI, made: Site) -> None:
    @app.get("/tasks")
    def tasks(status_filter: str | None = None, page_size: int = 20, cursor: str | None = None) -> dict[str, Any]:
        found = [each for each in made.tasks if status_filter in (None, each["status"])]
        start = int(cursor or 0)
        end = start + page_size
        return {
            "tasks": found[start:end],
            "total": len(found),
            "page": 1,
            "page_size": page_size,
            "pages": -(-len(found) // page_size),
            "counts": Counter(each["status"] for each in made.tasks),
            "next_cursor": str(end) if end < len(found) else None,
        }

    @app.delete("/tasks/{task_id}")
    def cancel(task_id: str) -> dict[str, Any]:
        made.change(task_id, "cancelled")
        return {"task_id": task_id, "status": "cancelled"}

    @app.get("/events")
    async def events(request: Request) -> StreamingResponse:
        return StreamingResponse(_stream(made), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _stream(made: Site) -> AsyncIterator[str]:
    queue: asyncio.Queue[str | None] = asyncio.Queue()
    made.streams.add(queue)
    try:
        yield "retry: 50\n\n"
        while (text := await queue.get()) is not None:
            yield text
    finally:
        made.streams.discard(queue)
