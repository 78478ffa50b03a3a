"""Listing folders and fsspec URLs."""

import os
from pathlib import Path

import fsspec
import pytest

from vectorize_pipelines.errors import SourceError
from vectorize_pipelines.sources.files import FileSource

SUFFIXES = (".md", ".txt")


def source(root: object, include: tuple[str, ...] = (), exclude: tuple[str, ...] = (".*",)) -> FileSource:
    return FileSource(str(root), SUFFIXES, include, exclude)


def names(root: Path, listed: FileSource) -> set[str]:
    return {os.path.relpath(name, root) for name in listed.list().files}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.md", "b.TXT", "c.png", ".hidden.md", ".git/d.md", "sub/e.md", "sub/deep/f.txt", "中文/笔记.md"):
        file = tmp_path / "docs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "docs"


def test_supported_files_are_taken_hidden_ones_and_others_not(folder: Path) -> None:
    assert names(folder, source(folder)) == {"a.md", "b.TXT", "sub/e.md", "sub/deep/f.txt", "中文/笔记.md"}
    assert source(folder).list().ignored == 2  # c.png and .hidden.md; .git is not entered


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        (("*.png",), (), {"c.png"}),
        (("sub/**",), (), {"sub/e.md", "sub/deep/f.txt"}),
        ((), (".*", "sub/"), {"a.md", "b.TXT", "中文/笔记.md"}),
        (("*.md",), ("/a.md", ".*"), {"sub/e.md", "中文/笔记.md"}),
    ],
)
def test_patterns(folder: Path, include: tuple[str, ...], exclude: tuple[str, ...], taken: set[str]) -> None:
    assert names(folder, source(folder, include, exclude)) == taken


def test_a_single_file_is_a_source_whatever_its_name(folder: Path) -> None:
    listing = source(folder / "c.png").list()
    assert list(listing.files) == [str(folder / "c.png")]


def test_size_and_time_are_those_of_the_file(folder: Path) -> None:
    os.utime(folder / "a.md", ns=(0, 1_700_000_000_123_456_789))
    file = source(folder).list().files[str(folder / "a.md")]
    assert (file.size, file.modified_ns) == (4, 1_700_000_000_123_456_789)
    assert file.occurred_at.isoformat() == "2023-11-14T22:13:20.123456+00:00"


def test_links_are_followed_once(folder: Path) -> None:
    (folder / "sub" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "broken.md").symlink_to(folder / "nowhere.md")
    listed = [os.path.realpath(name) for name in source(folder).list().files]
    assert len(listed) < 20
    assert {os.path.relpath(name, folder) for name in listed} == {
        "a.md",
        "b.TXT",
        "sub/e.md",
        "sub/deep/f.txt",
        "中文/笔记.md",
    }


def test_a_missing_root_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere.*No such file"):
        source(tmp_path / "nowhere").list()


def test_a_name_that_is_not_utf8_is_reported_and_the_others_are_listed(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.md")).write_text("x")
    listing = source(folder).list()
    assert len(listing.files) == 5
    assert [reason for name, reason in listing.unreadable.items() if "bad" in name] == [
        "its name is not valid UTF-8; rename it"
    ]


@pytest.mark.parametrize(
    ("root", "name", "held"),
    [
        ("/data", "/data/a.md", True),
        ("/data", "/data2/a.md", False),
        ("/", "/a.md", True),
        ("/d/a.md", "/d/a.md", True),
    ],
)
def test_what_belongs_to_a_source(root: str, name: str, held: bool) -> None:
    assert source(root).holds(name) is held


def test_an_fsspec_url() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/docs/a.md", b"hello")
    memory.pipe("/bucket/docs/sub/b.txt", b"hello there")
    memory.pipe("/bucket/docs/c.png", b"x")
    listing = source("memory://bucket/docs").list()
    assert {file.source_id: file.size for file in listing.files.values()} == {
        "memory:///bucket/docs/a.md": 5,
        "memory:///bucket/docs/sub/b.txt": 11,
    }
    assert all(file.modified_ns > 0 for file in listing.files.values())


@pytest.mark.parametrize("root", ["memory://bucket/nowhere", "nosuchprotocol://x/y"])
def test_a_url_that_cannot_be_listed_says_so(root: str) -> None:
    with pytest.raises(SourceError, match=root.split(":")[0]):
        source(root).list()


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(SourceError) as caught:
        source("sftp://user:hunter2@host/docs")
    assert "hunter2" not in str(caught.value)
