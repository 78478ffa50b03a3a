"""Files come in the order of their names, wherever they lie, and are never all held."""

import os
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import listing
from tests.sources import simulated_bucket
from tests.sources.s3_listing_server import s3_listing_server
from tests.sources.test_files import FolderByFolder
from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.errors import SourceError
from vectorize_pipelines.pipeline.files.comparison import compare
from vectorize_pipelines.sources.files import FileSource

NAMES = st.text(st.sampled_from("ab.0-/é中𝄞"), min_size=1, max_size=6)


def source(root: object) -> FileSource:
    return FileSource(str(root), (), ("*",), ())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.lists(st.lists(NAMES.filter(lambda name: name.strip("./") == name and "/" not in name), max_size=3)))
def test_files_come_in_the_order_of_their_names(
    paths: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("listed")
    memory = fsspec.filesystem("memory")
    memory.rm("/listed", recursive=True) if memory.exists("/listed") else None
    memory.pipe("/listed/begin", b"x")
    (root / "begin").touch()
    for parts in paths:
        file = root.joinpath(*parts) / "f"
        if not any(parent.is_file() for parent in file.parents) and not file.is_dir():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            memory.pipe(f"/listed/{file.relative_to(root)}", b"x")
    expected = sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())
    assert [os.path.relpath(file.source_id, root) for file in source(root).ordered()] == expected
    fsspec.register_implementation("folders", FolderByFolder, clobber=True)
    for url in ("memory://listed", "folders://listed"):
        assert [file.source_id.removeprefix(f"{url}/") for file in source(url).ordered()] == expected


def test_a_listing_out_of_order_deletes_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    listing_in_order = list(source(tmp_path).ordered())

    class Wrong(FileSource):
        def ordered(self) -> Any:
            listed = super().ordered()
            monkeypatch.setattr(listed, "_files", lambda _: iter([*listing_in_order[1:], listing_in_order[0]]))
            return listed

    wrong = Wrong(str(tmp_path), (), ("*",), ())
    with pytest.raises(SourceError, match="order of their names"):
        list(compare(wrong.ordered(), (), listing.READER))


def test_a_large_bucket_is_compared_in_bounded_memory(tmp_path: Path) -> None:
    simulated_bucket.register()
    file, shard = tmp_path / "manifest.sqlite", Shard(1, 2)
    listing.note_all(file, 400, 50, shard)
    known = listing.compared(file, 400, 400, 50, shard).unchanged
    assert 0.4 < known / (400 * 50) < 0.6
    peaks = []
    for folders in (40, 400):
        tracemalloc.start()
        found = listing.compared(file, 400, folders, 50, shard)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (found.changed, found.vanished) == (0, known - found.unchanged)
    assert found.unchanged == known
    assert peaks[1] < peaks[0] + 2**20, peaks
    assert peaks[1] < 8 * 2**20, peaks


def test_a_bucket_of_s3_is_listed_page_by_page_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    s3 = fsspec.get_filesystem_class("s3")
    keys = [f"docs/{n % 7}/{n:05}.md" for n in range(2500)] + [
        "docs/0.md",
        "docs/0-1.md",
        "docs/",
        "docs/é.md",
        "docs/a//b.md",
        "docs",
        "other/a.md",
    ]
    expected = sorted(f"s3://bucket/{key}" for key in keys if key.startswith("docs/") and key != "docs/")
    with s3_listing_server("bucket", keys) as (endpoint, queries):
        for name, value in (("ENDPOINT_URL", endpoint), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3.clear_instance_cache()
        listed = list(source("s3://bucket/docs").ordered())
        asked = len(queries)
        single = list(source("s3://bucket/other/a.md").ordered())
        s3.clear_instance_cache()
    assert [file.source_id for file in listed] == expected
    assert {file.size for file in listed} == {7}
    assert listed[0].occurred_at.isoformat() == "2024-03-01T12:00:00+00:00"
    assert sum("continuation-token" in query for query in queries) == 2, "three pages in all"
    assert [file.source_id for file in single] == ["s3://bucket/other/a.md"]
    assert asked <= 5, "and no request a folder"
