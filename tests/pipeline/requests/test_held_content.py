"""What a run holds of contents at a time is bounded, and nothing is lost by that."""

import base64
import gc
import io
import random
import threading
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from tests.encoders.tiny_clips import build_clip
from tests.pipeline.requests.installation import Installation, MakeInstallation, check_finished
from vectorize_pipelines.core.guarded_http import ContentTooLargeError
from vectorize_pipelines.core.items import Item, Modality
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.messaging.messages import Origin, Request, RequestItem, TaskType
from vectorize_pipelines.pipeline.requests import reader as request_reader
from vectorize_pipelines.pipeline.requests.content_budget import ContentBudget
from vectorize_pipelines.pipeline.requests.pending import PendingRequest
from vectorize_pipelines.pipeline.requests.reader import RequestReader
from vectorize_pipelines.pipeline.requests.targets import Target
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.fetching import Fetched

HELD = 200_000
CLIP = EncoderSpec("clip", "0" * 12, 8, None, "cls", "", "", frozenset({Modality.IMAGE, Modality.TEXT}), True)


def picture(size: int) -> bytes:
    """A PNG of at least so many bytes, unlike any other."""
    content = io.BytesIO()
    side = max(2, int((size / 3) ** 0.5) + 1)
    Image.frombytes("RGB", (side, side), random.Random(size).randbytes(side * side * 3)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def images(make_installation: MakeInstallation, tmp_path: Path) -> tuple[Installation, Path, list[int]]:
    """An installation for images, the folder that it may read, and the bytes in memory at each call of the encoder."""
    folder, held = tmp_path / "pictures", list[int]()
    folder.mkdir()
    installation = make_installation(
        uris={"allowed_roots": str(folder), "max_held_bytes": HELD},
        images={"max_file_bytes": 40_000},
        models={"image": str(build_clip(tmp_path / "clip"))},
    )
    installation.modality = Modality.IMAGE
    installation.on_encode = lambda _: held.append(_bytes_in_memory())
    return installation, folder, held


def _bytes_in_memory() -> int:
    """Of all images that any item holds."""
    items = [each for each in gc.get_objects() if type(each) is Item]
    return sum(len(item.content) for item in items if isinstance(item.content, bytes))


def request(task_id: str, *uris: object) -> dict[str, Any]:
    one = {"task_type": "image_vectorization", "data": str(uris[0])}
    several = {"task_type": "batch_vectorization", "data": [{**one, "data": str(uri)} for uri in uris]}
    return {"task_id": task_id, **(one if len(uris) == 1 else several)}


def test_a_backlog_of_images_is_read_in_parts(images: tuple[Installation, Path, list[int]]) -> None:
    installation, folder, held = images
    files = []
    for n in range(30):
        files.append(folder / f"{n}.png")
        files[-1].write_bytes(picture(30_000 + n))
    for n, file in enumerate(files):
        installation.send(request(f"image-{n}", file), partition=n % 2)
        if n % 10 == 5:
            installation.send(b"no request", partition=n % 2)
    installation.send(request("pair", *files[:2]), request("too-much", *files[:10]), request("last", files[0]))
    installation.drain()
    assert len(held) > 4
    assert max(held) <= HELD
    rows = installation.rows("images")
    assert set(rows) == {(f"image-{n}", 0) for n in range(30)} | {("pair", 0), ("pair", 1), ("last", 0)}
    assert {row["uri"] for row in rows.values()} == {str(file) for file in files}
    check_finished(installation, stored=33, collection="images")
    assert len(installation.letters()) == 4
    refused = installation.ledger()["too-much"]
    assert refused.error_class == "ContentTooLargeError"
    assert "VECTORIZE_URIS__MAX_HELD_BYTES" in (refused.error_message or "")
    states = installation.final_events()
    assert states.pop("too-much") == ["failed"]
    assert set(map(tuple, states.values())) == {("completed",)}


@pytest.mark.parametrize("part", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("where", ["encoder", "writer"])
def test_a_run_that_fails_between_two_parts_ends_and_is_made_up_for(
    images: tuple[Installation, Path, list[int]], part: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever stage fails, the reader waits for room that nobody would make."""
    installation, folder, _ = images
    for n in range(30):
        (folder / f"{n}.png").write_bytes(picture(30_000 + n))
    installation.send(*[request(f"image-{n}", folder / f"{n}.png") for n in range(30)])
    upsert, calls = installation.store.upsert, 0

    def failing(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == part:
            raise ZeroDivisionError

    def failing_upsert(name: str, records: Any) -> Any:
        failing()
        return upsert(name, records)

    if where == "encoder":
        installation.on_encode = failing
    else:
        # Nor is it looked what is in memory, which would hold on to whatever is just being let go.
        installation.on_encode = lambda _: None
        monkeypatch.setattr(installation.store, "upsert", failing_upsert)
    with pytest.raises(ZeroDivisionError):
        installation.drain()
    told = len(installation.final_events())
    assert told < 30
    if part == 5:
        assert told, "parts are acknowledged one by one"
    installation.drain()
    assert installation.final_events() == {f"image-{n}": ["completed"] for n in range(30)}
    check_finished(installation, stored=30, collection="images")


def test_a_run_that_is_left_while_it_waits_for_room_ends(images: tuple[Installation, Path, list[int]]) -> None:
    installation, folder, _ = images
    for n in range(30):
        (folder / f"{n}.png").write_bytes(picture(30_000 + n))
    installation.send(*[request(f"image-{n}", folder / f"{n}.png") for n in range(30)])
    with installation.open_drain() as stream:
        next(iter(stream))
    installation.drain()
    check_finished(installation, stored=30, collection="images")


def test_more_bytes_than_announced_are_another_content(images: tuple[Installation, Path, list[int]]) -> None:
    installation, folder, _ = images
    file = folder / "a.png"
    file.write_bytes(picture(30_000))
    installation.send(request("grown", f"{file}#size=29000"), request("right", f"{file}#size={file.stat().st_size}"))
    installation.drain()
    grown = installation.ledger()["grown"]
    assert grown.error_class == "ContentMismatchError"
    assert grown.error_message == "is more than the 29,000 bytes that were announced"
    check_finished(installation, stored=1, collection="images")


def test_what_is_still_being_fetched_for_a_refused_request_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = b"no picture", picture(500)
    begun, go, given_back = threading.Event(), threading.Event(), threading.Event()

    class Budget(ContentBudget):
        def give_back(self, size: int) -> None:
            super().give_back(size)
            if go.is_set():
                given_back.set()

    def slow(uri: str, *arguments: Any, **options: Any) -> Fetched:
        if uri == _uri(bad):
            assert begun.wait(60)  # or else the other one would not even begin
            return Fetched(bad, None, "")
        begun.set()
        assert go.wait(60)
        return Fetched(good, None, "")

    monkeypatch.setattr(request_reader, "fetch_described", slow)
    budget = Budget(10_000)
    reader = RequestReader(Settings(), budget)
    pending = _pending(0, [bad, good])
    assert list(reader.read([pending])) == []
    assert isinstance(pending.error, ItemError)
    assert (pending.error.__traceback__, pending.error.__cause__, pending.error.__context__) == (None, None, None)
    assert not budget.take(10_000)
    go.set()
    assert given_back.wait(60)
    assert budget.take(10_000)
    reader.close()


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.lists(st.integers(100, 3_000), min_size=1, max_size=5), max_size=12),
    most=st.integers(1_000, 12_000),
)
def test_every_request_is_read_or_refused_whatever_the_bound(sizes: list[list[int]], most: int) -> None:
    """Against a bound worked out by hand; what was passed on is given back by another thread, in its own time."""
    head = picture(1)
    contents = [[head + bytes(size) for size in request] for request in sizes]
    requests = [_pending(n, request) for n, request in enumerate(contents)]
    budget, passed = ContentBudget(most), Queue[PendingRequest | None]()

    def give_back() -> None:
        while (pending := passed.get()) is not None:
            budget.give_back(pending.held_bytes)

    writer = threading.Thread(target=give_back)
    writer.start()
    reader = RequestReader(Settings(), budget)
    left = deque(requests)
    try:
        for last in reader.read(requests):
            while last in left:
                passed.put(left.popleft())
    finally:
        for pending in left:
            passed.put(pending)
        passed.put(None)
        writer.join()
        everything = budget.take(most)
        reader.close()
    for pending, request in zip(requests, contents, strict=True):
        assert isinstance(pending.error, ContentTooLargeError) == (sum(map(len, request)) > most), pending.error
        assert [item.content for item in pending.items] == ([] if pending.error else request)
    assert everything, "all of it has been given back"


def _uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _pending(number: int, contents: list[bytes]) -> PendingRequest:
    items = tuple(RequestItem(Modality.IMAGE, _uri(content)) for content in contents)
    now = datetime.now(UTC)
    made = Request(
        f"t{number}", TaskType.BATCH, items, None, None, 0, None, {}, None, Origin("images", 0, number, 1_000)
    )
    return PendingRequest(
        made, None, "2026-01-01", now, now, Target("images", "images__clip", "clip", None, None, CLIP)
    )
