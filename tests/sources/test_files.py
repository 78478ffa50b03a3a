"""Listing folders and fsspec URLs."""

import ftplib
import os
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.ftp import FTPFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from vectorize_pipelines.errors import SourceError, UnreadableFileError
from vectorize_pipelines.settings import PROJECT_ROOT
from vectorize_pipelines.sources.content import EXTRA_OF_SCHEME, read_content
from vectorize_pipelines.sources.files import FileSource, SourceFile

SUFFIXES = (".md", ".txt")


def source(
    root: object, include: tuple[str, ...] = (), exclude: tuple[str, ...] = (".*",), *, follow_links: bool = False
) -> FileSource:
    return FileSource(str(root), SUFFIXES, include, exclude, follow_links=follow_links)


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


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_file_of_another_kind_that_lies_there_is_not_gone(folder: Path, is_remote: bool) -> None:
    root = str(folder)
    if is_remote:
        memory = fsspec.filesystem("memory")
        root = "memory://kinds"
        memory.pipe({"/kinds/a.md": b"a", "/kinds/c.png": b"c", "/kinds/.hidden.png": b"h"})
    else:
        (folder / ".hidden.png").touch()
    names = ("c.png", ".hidden.png", "gone.png", "gone.md", "sub/gone.png")
    listing = source(root).ordered()
    assert any(True for _ in listing)
    assert [name for name in names if listing.hides(f"{root}/{name}")] == ["c.png"]
    listing = source(root, include=("*.md",)).ordered()
    assert not listing.hides(f"{root}/c.png")


def test_files_of_other_kinds_are_counted_where_only_their_suffix_rules_them_out(folder: Path) -> None:
    for name in ("d.PNG", "Makefile", "Dr. Smith's letter", "sub/e.zip"):
        (folder / name).touch()
    assert source(folder).list().other_kinds == {".png": 2, "": 2, ".zip": 1}
    assert source(folder, exclude=(".*", "*.png", "sub/")).list().other_kinds == {".png": 1, "": 2}
    assert source(folder, include=("*.md",)).list().other_kinds == {}
    assert source(folder / "c.png").list().other_kinds == {}


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
    (folder / "self").symlink_to("self")
    (folder / "broken.md").symlink_to(folder / "nowhere.md")
    (folder / "aaa").symlink_to(folder / "sub", target_is_directory=True)
    (folder / "link.md").symlink_to(folder / "a.md")
    (folder / "outside").symlink_to(folder.parent / "elsewhere", target_is_directory=True)
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "g.md").write_text("g")
    inside = {"a.md", "b.TXT", "link.md", "sub/e.md", "sub/deep/f.txt", "中文/笔记.md"}
    assert names(folder, source(folder, follow_links=True)) == inside | {"outside/g.md"}
    assert names(folder, source(folder)) == inside


TEMPORARY = (
    *("~$report.md", ".~lock.report.md#", ".#report.md", "#report.md#", "report.md~", "report.md.swp", "a.TMP"),
    *("report.md.crdownload", "report.download", "report.md.part", "report.md.partial"),
    *("Thumbs.db", "THUMBS.DB", "desktop.ini", "Desktop.ini", ".DS_Store", "sub/~$E.MD", "sub/._e.md"),
)


def test_temporary_files_are_left_out_and_counted(folder: Path) -> None:
    taken = names(folder, source(folder))
    for name in TEMPORARY:
        (folder / name).touch()
    (folder / ".git" / "index.tmp").touch()
    (folder / ".#linked.md").symlink_to("somebody@host.1234")
    listing = source(folder).list()
    assert {os.path.relpath(name, folder) for name in listing.files} == taken
    assert (listing.left_out, listing.other_kinds, listing.unreadable) == (len(TEMPORARY), {".png": 1}, {})
    assert source(folder, exclude=("sub",)).list().left_out == len(TEMPORARY) - 2 + 1
    memory = fsspec.filesystem("memory")
    for name in TEMPORARY:
        memory.pipe(f"/left-out/{name}", b"x")
    memory.pipe("/left-out/a.md", b"x")
    remote = source("memory://left-out").list()
    assert (list(remote.files), remote.left_out) == (["memory://left-out/a.md"], len(TEMPORARY))


@pytest.mark.parametrize(
    ("include", "taken"),
    [
        (("*.md", "*.tmp"), {"a.md", "a.TMP"}),
        (("*",), {"a.md"}),
        (("/~$*",), {"~$report.md"}),
        (("Thumbs.db",), {"Thumbs.db"}),
        ((r"\#report.md#",), {"#report.md#"}),
        (("*.md", "!*.tmp"), {"a.md"}),
    ],
)
def test_temporary_files_are_taken_where_a_pattern_names_them(
    include: tuple[str, ...], taken: set[str], tmp_path: Path
) -> None:
    for name in ("a.md", "a.TMP", "~$report.md", "Thumbs.db", "#report.md#"):
        (tmp_path / name).touch()
    assert names(tmp_path, source(tmp_path, tuple(each.replace("tmp", "TMP") for each in include))) == taken


def test_a_link_that_leads_nowhere_is_listed_and_hides_what_was_there(folder: Path) -> None:
    share = folder.parent / "share"
    for name, target in {"a-link.md": "gone.md", "docs": "gone", "v1.2": "gone", "lib.so": "gone.so"}.items():
        (folder / name).symlink_to(share / target)
    for name in (".hidden", "skipped"):
        (folder / name).symlink_to(share / "gone")
    listing = source(folder, exclude=(".*", "skipped/"), follow_links=True).ordered()
    assert len(list(listing)) == listing.found == 5
    assert set(listing.unreadable) == {str(folder / "a-link.md"), str(folder / "docs")}
    assert all("not there" in reason for reason in listing.unreadable.values())
    for name in ("a-link.md", "docs/a.md", "docs/sub/a.md", "v1.2/a.md"):
        assert listing.hides(str(folder / name))
    for name in ("a.md", "docs.md", "skipped/a.md"):
        assert not listing.hides(str(folder / name))
    assert source(folder, exclude=("*",), follow_links=True).list().unreadable == {}


def test_links_out_of_the_folder_or_to_themselves_say_what_is_wrong(folder: Path) -> None:
    (folder / "away.md").symlink_to(folder / "away" / "report.md")
    (folder / "self.md").symlink_to("self.md")
    (folder.parent / "there.md").touch()
    (folder / "out.md").symlink_to(folder.parent / "there.md")
    reasons = source(folder).list().unreadable
    assert "is not there; mount or restore that" in reasons[str(folder / "away.md")]
    assert "leads back to itself; remove it" in reasons[str(folder / "self.md")]
    assert "--follow-links" in reasons[str(folder / "out.md")]


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/sub/..", "{}/./", "file://{}"])
def test_a_folder_has_one_name(folder: Path, spelling: str) -> None:
    listed = source(spelling.format(folder))
    assert listed.root == str(folder)
    assert all(listed.holds(name) for name in listed.list().files)


def test_a_file_url_may_be_quoted(tmp_path: Path) -> None:
    (tmp_path / "a b#c").mkdir()
    assert source(f"file://{tmp_path}/a%20b%23c").root == str(tmp_path / "a b#c")


@pytest.mark.parametrize("modified_ns", [-(10**20), 3 * 10**20, 0])
def test_absurd_times_are_times_all_the_same(modified_ns: int) -> None:
    assert 1 <= SourceFile("/a.md", 1, modified_ns).occurred_at.year <= 9999


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


@pytest.fixture
def bucket() -> str:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/docs/a.md", b"hello")
    memory.pipe("/bucket/docs/sub/b.txt", b"hello there")
    memory.pipe("/bucket/docs/c.png", b"x")
    return "memory://bucket/docs"


@pytest.mark.parametrize("ending", ["", "/"])
def test_an_fsspec_url(bucket: str, ending: str) -> None:
    listed = source(bucket + ending)
    listing = listed.list()
    assert {file.source_id: file.size for file in listing.files.values()} == {
        "memory://bucket/docs/a.md": 5,
        "memory://bucket/docs/sub/b.txt": 11,
    }
    assert listing.other_kinds == {".png": 1}
    assert all(file.modified_ns > 0 for file in listing.files.values())
    assert all(listed.holds(name) for name in listing.files)
    for name, file in listing.files.items():
        with fsspec.open(name) as content:
            assert len(content.read()) == file.size


@pytest.mark.parametrize(
    ("url", "remedy"),
    [("s3://bucket/docs", r"pip install '.*\[s3\]'"), ("gs://bucket/docs", r"pip install '.*\[gcs\]'")],
)
def test_a_missing_package_is_named_with_what_installs_it(
    url: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SourceError, match=f"{url} cannot be listed.*{remedy}"):
        source(url).list()
    with pytest.raises(UnreadableFileError, match=f"cannot be read.*{remedy}"):
        read_content(f"{url}/a.md", 1000)


def test_every_extra_that_is_named_is_there() -> None:
    extras = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRA_OF_SCHEME.values()) <= set(extras)


def test_a_single_file_by_url(bucket: str) -> None:
    assert list(source(f"{bucket}/a.md").list().files) == [f"{bucket}/a.md"]


class FolderByFolder(MemoryFileSystem):  # type: ignore[misc]
    """A file system that lists one folder a call, as FTP does; one of its folders is forbidden."""

    protocol = "folders"
    find = AbstractFileSystem.find
    forbidden = ""
    #: What is removed just before it is listed.
    removed = ""
    #: What is said not to be there, and is.
    denied = ""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("folders://", "memory://")))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        if self.forbidden and path.endswith(self.forbidden):
            raise PermissionError("Forbidden")
        if self.removed and path.endswith(self.removed):
            for name in [each for each in self.store if each.startswith(f"{path}/")]:
                del self.store[name]
        if self.denied and path.endswith(self.denied):
            raise FileNotFoundError(path)
        return super().ls(path, detail, **options)


def test_a_remote_folder_that_cannot_be_listed_fails_the_listing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("folders", FolderByFolder, clobber=True)
    url = bucket.replace("memory:", "folders:")
    assert {Path(name).name for name in source(url).list().files} == {"a.md", "b.txt"}
    monkeypatch.setattr(FolderByFolder, "forbidden", "sub")
    with pytest.raises(SourceError, match="Forbidden"):
        source(url).list()


def test_a_remote_folder_that_is_removed_while_it_is_listed_is_empty(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("folders", FolderByFolder, clobber=True)
    url = bucket.replace("memory:", "folders:")
    monkeypatch.setattr(FolderByFolder, "removed", "sub")
    assert {Path(name).name for name in source(url).list().files} == {"a.md"}
    with pytest.raises(SourceError, match="nothing lies there"):
        source("folders://bucket/nowhere").list()


@pytest.mark.parametrize("denied", ["docs", "sub"])
def test_a_remote_folder_that_is_there_and_not_found_fails_the_listing(
    bucket: str, denied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("folders", FolderByFolder, clobber=True)
    monkeypatch.setattr(FolderByFolder, "denied", denied)
    with pytest.raises(SourceError, match=f"cannot be listed: FileNotFoundError.*{denied}"):
        source(bucket.replace("memory:", "folders:")).list()


class BusyFTP:
    """Answers as an FTP server with some folders, of which it cannot list `busy` for the moment."""

    busy = ""
    folders: ClassVar = {
        "/": {"docs": "dir"},
        "/docs": {"a.md": "file", "sub": "dir", "empty": "dir"},
        "/docs/sub": {"b.md": "file"},
        "/docs/empty": {},
    }

    def mlsd(self, path: str) -> list[tuple[str, dict[str, str]]]:
        if path == self.busy:
            raise ftplib.error_temp("425 no connection for data")
        return [(name, {"type": kind, "size": "1"}) for name, kind in self.folders[path].items()]

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("busy", ["/docs", "/docs/sub"])
def test_a_folder_that_an_ftp_server_does_not_list_is_not_taken_for_an_empty_one(
    busy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = BusyFTP()
    monkeypatch.setattr(FTPFileSystem, "_connect", lambda filesystem: setattr(filesystem, "ftp", server))
    ftp = source("ftp://example.com/docs")
    assert set(ftp.list().files) == {"ftp://example.com/docs/a.md", "ftp://example.com/docs/sub/b.md"}
    server.busy = busy
    with pytest.raises(SourceError, match=f"the server does not list {busy}"):
        ftp.list()


class ListedAtOnce(AbstractFileSystem):  # type: ignore[misc]
    """An object store that lists all its keys by one call, as those of Google and Azure do; it has no folders."""

    protocol = "at-once"
    cachable = False
    keys = ("bucket/docs", "bucket/docs/a//b.md", "bucket/docs/a.md", "bucket/docs/a/c.md", "bucket/docs2/d.md")
    #: As adlfs does where a blob has this very name.
    names_a_blob_alone = False

    def find(self, path: str, prefix: str = "", **options: Any) -> Any:
        if self.names_a_blob_alone and path in self.keys:
            return [path]
        below = f"{path}/{prefix}"
        return {key: self.info(key) for key in reversed(self.keys) if key.startswith(below) or key == path}

    def info(self, path: str, **options: Any) -> Any:
        if path not in self.keys:
            raise FileNotFoundError(path)
        return {"name": path, "type": "file", "size": 7}


@pytest.mark.parametrize("names_a_blob_alone", [False, True])
def test_keys_that_no_folder_could_have_are_listed(names_a_blob_alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("at-once", ListedAtOnce, clobber=True)
    monkeypatch.setattr(ListedAtOnce, "names_a_blob_alone", names_a_blob_alone)
    listed = [file.source_id for file in source("at-once://bucket/docs").ordered()]
    assert listed == [f"at-once://bucket/docs/{name}" for name in ("a.md", "a//b.md", "a/c.md")]
    assert list(source("at-once://bucket/docs2/d.md").list().files) == ["at-once://bucket/docs2/d.md"]


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (datetime(2024, 1, 1), 1704067200),
        (datetime(2024, 1, 1, tzinfo=UTC), 1704067200),
        ("2024-01-01T00:00:00Z", 1704067200),
        ("Mon, 01 Jan 2024 00:00:00 GMT", 0),
        (1704067200.5, 1704067200.5),
    ],
)
def test_times_as_file_systems_give_them(
    bucket: str, monkeypatch: pytest.MonkeyPatch, given: Any, seconds: float
) -> None:
    memory = fsspec.filesystem("memory")
    found = {"/bucket/docs/a.md": {"name": "/bucket/docs/a.md", "type": "file", "size": 5, "LastModified": given}}
    monkeypatch.setattr(memory, "find", lambda *_, **__: found)
    (file,) = source("memory://bucket/docs").list().files.values()
    assert file.modified_ns == seconds * 1_000_000_000


@pytest.mark.parametrize("root", ["memory://bucket/nowhere", "nosuchprotocol://x/y"])
def test_a_url_that_cannot_be_listed_says_so(root: str) -> None:
    with pytest.raises(SourceError, match=root.split(":")[0]):
        source(root).list()


@pytest.mark.parametrize(
    "url",
    [
        "sftp://user:hunter2@host/docs",
        "https://hunter2@host/docs",
        "https://host/docs?signature=hunter2",
        "simplecache::ftp://user:hunter2@host/docs",
        "zip://docs::s3://key:hunter2@bucket/a.zip",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SourceError) as caught:
        source(url)
    assert "hunter2" not in str(caught.value)
