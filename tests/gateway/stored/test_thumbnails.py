"""Thumbnails over HTTP: of images that lie where they were, and of nothing else."""

import io
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from tests.gateway.searching import PICTURES, TEXTS, served, store_images, store_pictures, store_texts
from tests.images.pictures import encoded, photo
from tests.servers.web import answer, serving
from vectorize_pipelines.core.records import record_id
from vectorize_pipelines.settings import Settings, load_settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


@pytest.fixture
def pictures(settings: Settings, folder: Path) -> list[Path]:
    """The files of the collection `PICTURES`, as this installation has listed them."""
    return store_pictures(settings, folder)


@pytest.fixture
def client(settings: Settings, pictures: list[Path]) -> Iterator[httpx2.Client]:
    with served(settings) as client:
        yield client


def path_of(source_id: object) -> str:
    """Where the row of a source is; the ids of all these rows are made as of the collection `TEXTS`."""
    return f"/collections/{PICTURES}/rows/{record_id(TEXTS, str(source_id), 0)}"


def is_missing(found: httpx2.Response) -> bool:
    assert found.headers["Content-Type"] == "application/problem+json"
    return found.status_code == HTTPStatus.NOT_FOUND


def test_a_picture_is_shown_small(client: httpx2.Client, pictures: list[Path]) -> None:
    row = client.get(path_of(pictures[0])).json()
    assert row["thumbnail_url"] == f"{path_of(pictures[0])}/thumbnail"
    found = client.get(row["thumbnail_url"])
    assert found.status_code == HTTPStatus.OK
    assert found.headers["Content-Type"] == "image/jpeg"
    assert found.headers["X-Content-Type-Options"] == "nosniff"
    assert found.headers["Cache-Control"].startswith("private")
    with Image.open(io.BytesIO(found.content)) as thumbnail, Image.open(pictures[0]) as whole:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (256, 192))
        small = whole.resize((256, 192))
        difference = [abs(a - b) for a, b in zip(thumbnail.tobytes(), small.tobytes(), strict=True)]
        assert sum(difference) / len(difference) < 10


def test_what_is_gone_or_has_changed_is_not_shown(client: httpx2.Client, pictures: list[Path], tmp_path: Path) -> None:
    gone, changed, linked = (f"{path_of(file)}/thumbnail" for file in pictures)
    pictures[0].unlink()
    assert is_missing(client.get(gone))
    pictures[1].write_bytes(encoded(photo(9, 64, 64), "PNG"))
    assert is_missing(client.get(changed))
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(photo(8, 64, 64), "PNG"))
    pictures[2].unlink()
    pictures[2].symlink_to(secret)
    assert is_missing(client.get(linked))
    assert str(secret) not in client.get(linked).text


def test_what_a_request_named_is_read_under_its_rules_only(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "named.png"
    content = encoded(photo(1, 64, 64), "PNG")
    file.write_bytes(content)
    rows = {"by a path": str(file), "by a URI": file.as_uri(), "within the message": "kafka://images/0/0"}
    with serving(lambda handler: answer(handler, body=content)) as web:
        rows["by an address"] = web.url("/a.png")
        store_images(
            settings, folder, [{"source_id": name, "uri": uri, "content": content} for name, uri in rows.items()]
        )
        with served(settings) as client:
            for name in rows:
                assert is_missing(client.get(f"{path_of(name)}/thumbnail"))
            assert client.get(path_of("within the message")).json()["thumbnail_url"] is None
        assert not web.asked
        monkeypatch.setenv("VECTORIZE_URIS__ALLOWED_ROOTS", str(folder))
        monkeypatch.setenv("VECTORIZE_URIS__ALLOW_PRIVATE", "true")
        with served(load_settings()) as client:
            for name in ("by a path", "by a URI", "by an address"):
                assert client.get(f"{path_of(name)}/thumbnail").status_code == HTTPStatus.OK
            assert is_missing(client.get(f"{path_of('within the message')}/thumbnail"))
        assert web.asked == ["/a.png"]


def test_rows_of_texts_have_none(settings: Settings, client: httpx2.Client) -> None:
    store_texts(settings)
    id_ = record_id(TEXTS, "lamp.md", 0)
    assert is_missing(client.get(f"/collections/{TEXTS}/rows/{id_}/thumbnail"))
    assert is_missing(client.get(f"{path_of('nobody')}/thumbnail"))
