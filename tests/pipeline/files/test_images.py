"""A folder of images and its collection: each image a row, those that cannot be decoded refused alone."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.encoders.tiny_clips import build_clip
from tests.pipeline.files.gallery import REFUSED_RED, Gallery, picture, red
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.pipeline.files import planning
from vectorize_pipelines.pipeline.files.images import compare_gallery
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, load_settings
from vectorize_pipelines.sources.content import read_content
from vectorize_pipelines.stores.filters.expressions import In

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_clip(tmp_path_factory.mktemp("models") / "clip"))


@pytest.fixture
def gallery(tmp_path: Path, clip: str) -> Gallery:
    return Gallery(tmp_path / "installation", clip)


def test_images_are_rows_with_what_their_headers_say(gallery: Gallery) -> None:
    (gallery.folder / "a.png").write_bytes(picture(1, 2))
    stream = gallery.run()
    assert stream.totals.sum().encoded == 1
    columns = ("source_id", "uri", "modality", "text", "item_index", "metadata")
    (row,) = gallery.store.fetch("gallery", In("item_index", (0,)), columns).to_pylist()
    name = str(gallery.folder / "a.png")
    assert (row["source_id"], row["uri"], row["modality"], row["text"]) == (name, name, "image", None)
    assert row["metadata"] == '{"format": "png", "height": 3, "name": "a.png", "width": 4}'


def test_what_the_encoder_refuses_fails_alone_and_its_earlier_row_stays(gallery: Gallery) -> None:
    good, changing = gallery.folder / "good.png", gallery.folder / "changing.png"
    good.write_bytes(picture(1, 2))
    changing.write_bytes(picture(3, 4))
    gallery.run()
    before = gallery.vectors()

    changing.write_bytes(picture(REFUSED_RED, 5))
    (gallery.folder / "new.png").write_bytes(picture(REFUSED_RED, 6))
    (gallery.folder / "better.png").write_bytes(picture(7, 8))
    stream = gallery.run()
    done = stream.totals.sum()
    assert {failure.source_id.rsplit("/", 1)[-1] for failure in stream.failures} == {"changing.png", "new.png"}
    assert (done.documents, done.chunks, done.encoded, done.failed) == (4, 2, 1, 2)
    assert done.errors == {"CorruptImageError": 2}
    after = gallery.vectors()
    assert after.keys() == {"good.png", "changing.png", "better.png"}
    assert np.array_equal(after["changing.png"], before["changing.png"])

    gallery.encoder.batches.clear()
    again = gallery.run()
    assert gallery.encoder.batches == [], "the same bytes are refused for good"
    assert again.totals.sum().failed == 2


def test_what_is_no_image_is_refused_before_it_is_encoded(gallery: Gallery) -> None:
    (gallery.folder / "text.jpg").write_bytes(b"no image")
    (gallery.folder / "empty.png").write_bytes(b"")
    stream = gallery.run()
    assert {failure.error_class for failure in stream.failures} == {"UnsupportedImageError", "EmptyImageError"}
    assert gallery.encoder.batches == []


def test_a_touched_image_is_not_encoded_and_a_deleted_one_goes(gallery: Gallery) -> None:
    for name in ("a.png", "b.png"):
        (gallery.folder / name).write_bytes(picture(1, len(name)))
    gallery.run()
    gallery.encoder.batches.clear()
    os.utime(gallery.folder / "a.png", (1_700_000_000, 1_700_000_000))
    (gallery.folder / "b.png").unlink()
    stream = gallery.run()
    assert gallery.encoder.batches == []
    assert stream.totals.sum().deleted == 1
    (row,) = gallery.store.fetch("gallery", In("item_index", (0,)), ("source_id", "partition")).to_pylist()
    assert row["partition"] == "2023-11-14"


def test_remote_images_go_through_in_bounded_groups(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    contents = {f"/shared/{n}.png": picture(n, n + 1) for n in range(9)}
    for name, data in contents.items():
        memory.pipe(name, data)
    monkeypatch.setattr(planning, "BYTES_TOGETHER", 3 * max(map(len, contents.values())))
    gallery.run("memory://shared")
    assert max(gallery.encoder.batches) <= 3 + 1
    stored = gallery.vectors()
    assert stored.keys() == {f"{n}.png" for n in range(9)}
    for name, data in contents.items():
        assert np.array_equal(stored[name.rsplit("/", 1)[-1]], gallery.encoder.vector(data))


def test_a_model_of_texts_takes_no_images(gallery: Gallery) -> None:
    with pytest.raises(SettingsError, match="takes no images"):
        gallery.run(model=DEFAULT_TEXT_MODEL)


def test_without_a_path_there_is_nothing_to_compare() -> None:
    with pytest.raises(SettingsError, match="VECTORIZE_GALLERY__PATH"):
        compare_gallery(load_settings({}))


NAMES = st.sampled_from(["a.png", "b.png", "c.png"])
COLOURS = st.one_of(st.none(), st.tuples(st.sampled_from([1, 2, REFUSED_RED]), st.integers(0, 3)))


@given(st.lists(st.lists(st.tuples(NAMES, COLOURS), min_size=1, max_size=4), min_size=1, max_size=4))
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_history_each_image_has_its_last_good_version(
    clip: str, history: list[list[tuple[str, tuple[int, int] | None]]]
) -> None:
    with TemporaryDirectory() as home:
        gallery = Gallery(Path(home) / "installation", clip)
        expected: dict[str, bytes] = {}
        clock = 1_700_000_000
        for edits in history:
            for name, colour in edits:
                file = gallery.folder / name
                clock += 1
                if colour is None:
                    file.unlink(missing_ok=True)
                else:
                    file.write_bytes(picture(*colour))
                    os.utime(file, (clock, clock))
            gallery.run()
            present = {file.name: file.read_bytes() for file in gallery.folder.iterdir()}
            expected = {name: data for name, data in expected.items() if name in present}
            expected |= {name: data for name, data in present.items() if not red(data)}
            stored = gallery.vectors()
            assert stored.keys() == expected.keys()
            for name, data in expected.items():
                assert np.array_equal(stored[name], gallery.encoder.vector(data)), name


def test_read_content_reads_no_further_than_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_content(str(tmp_path / "file"), 3) == b"123"
