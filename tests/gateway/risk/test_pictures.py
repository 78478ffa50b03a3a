"""Pictures of groups: what is shown stays, what nobody is shown makes room."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messaging.assessed import picture
from vectorize_pipelines.gateway.risk.pictures import SHOWN, PictureStore

JPEG = b"\xff\xd8\xff" + bytes(997)


def text(content: bytes = JPEG) -> str:
    return base64.b64encode(content).decode()


SIZE = len(text())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("before", ["", "data:image/whatever;base64,"])
def test_a_picture_is_sent_as_what_it_is(kind: str, before: str) -> None:
    content, store = picture((1, 2, 3), kind), PictureStore()
    store.put("task", before + text(content))
    found = store.get("task")
    assert found is not None
    assert (found.content, found.media_type) == (content, f"image/{kind.lower()}")


@pytest.mark.parametrize("content", [b"", b"<svg/>", b"GIF89a", b"RIFF....AVI ", b"<html>"])
def test_what_browsers_might_take_for_something_else_is_not_shown(content: bytes) -> None:
    store = PictureStore()
    store.put("task", text(content))
    store.put("broken", "no base64: ü")
    assert store.get("task") is store.get("broken") is store.get("unknown") is None


def test_what_just_arrived_makes_room_for_the_next_and_what_is_shown_stays() -> None:
    store = PictureStore(max_bytes=3 * SIZE)
    store.put("shown", text())
    store.show("north", ["shown", "without a picture"])
    for number in range(10):
        store.put(f"task-{number}", text())
    assert [number for number in range(10) if store.get(f"task-{number}")] == [7, 8, 9]
    assert store.get("shown")


def test_the_latest_of_a_camera_are_kept_and_silent_cameras_make_room() -> None:
    store = PictureStore(max_bytes=2 * SHOWN * SIZE)
    for camera in ("north", "south", "west"):
        for number in range(SHOWN + 2):
            name = f"{camera}-{number}"
            store.put(name, text())
            store.show(camera, [name])
    kept = {
        camera: [n for n in range(SHOWN + 2) if store.get(f"{camera}-{n}")] for camera in ("north", "south", "west")
    }
    assert kept == {"north": [], "south": [2, 3, 4, 5], "west": [2, 3, 4, 5]}


def test_cameras_without_pictures_leave_nothing_behind() -> None:
    store = PictureStore()
    for number in range(100):
        store.show(f"camera-{number}", [f"task-{number}"])
    assert store.cameras == 0


def test_so_many_cameras_are_shown_at_once() -> None:
    store = PictureStore(max_cameras=2)
    for camera in ("north", "south", "north", "west"):
        name = f"{camera}-{store.held_bytes[1]}"
        store.put(name, text())
        store.show(camera, [name])
    assert store.cameras == 2
    assert [bool(store.get(f"{camera}-{SIZE * n}")) for camera, n in (("north", 0), ("north", 2), ("west", 3))] == [
        True,
        True,
        True,
    ]
    assert store.get(f"south-{SIZE}") is None


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 12), st.integers(1, 9)),
            st.tuples(st.integers(0, 2), st.lists(st.integers(0, 12), max_size=4)),
        ),
        max_size=60,
    )
)
def test_never_more_is_held_than_allowed(
    steps: list[tuple[int, int | list[int]]],
) -> None:
    store = PictureStore(max_bytes=20)
    for number, given_with in steps:
        if isinstance(given_with, int):
            store.put(f"task-{number}", "A" * given_with)
        else:
            store.show(f"camera-{number}", [f"task-{each}" for each in given_with])
        assert all(0 <= each <= 20 for each in store.held_bytes)
    for number in range(13):
        store.get(f"task-{number}")
