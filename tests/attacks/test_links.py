"""What lies in a folder may be no file at all, or lead out of it: nothing waits for it, and nothing outside is read."""

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.commands import Vectorize
from tests.documents.builders import SETTINGS
from tests.encoders.tiny_clips import build_clip
from tests.forks import Fork, call
from tests.pipeline.files.gallery import Gallery, picture
from tests.pipeline.files.installation import Installation, install, paragraphs
from tests.servers.dev import until
from vectorize_pipelines.documents.errors import TooLargeError
from vectorize_pipelines.documents.pool import ParserPool
from vectorize_pipelines.errors import UnreadableFileError
from vectorize_pipelines.pipeline.files import images as images_module
from vectorize_pipelines.pipeline.files.context import FolderRequest
from vectorize_pipelines.pipeline.files.folder import open_folder
from vectorize_pipelines.pipeline.files.images import ImageReader, gallery_source
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.sources import content
from vectorize_pipelines.sources.content import LEADS_OUT, read_content
from vectorize_pipelines.sources.files import FileSource
from vectorize_pipelines.sources.reading_threads import ReadingThreads
from vectorize_pipelines.state.generations import EmbeddingConfig

SECRET = "the word that nobody outside may find"


@pytest.fixture
def corpus(tmp_path: Path) -> Installation:
    made = install(tmp_path / "installation")
    made.write("a.md", paragraphs(1))
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "secret.md").write_text(SECRET)
    (outside / "deep" / "secret.md").write_text(SECRET)
    return made


def failed(stream: Any) -> dict[str, str]:
    return {Path(failure.source_id).name: failure.message for failure in stream.failures}


def following(installation: Installation, follow: bool) -> Installation:
    corpus = {"follow_links": follow}
    documents = {"chunk_tokens": 32, "overlap_tokens": 0}
    installation.settings = load_settings(
        {}, home=str(installation.settings.home), corpus=corpus, documents=documents, cache={"enabled": "off"}
    )
    return installation


def texts(installation: Installation) -> str:
    return "\n".join(row[0] for row in installation.rows().values())


# Links


def test_links_that_lead_out_are_listed_and_not_read(corpus: Installation, tmp_path: Path) -> None:
    (corpus.folder / "file.md").symlink_to(tmp_path / "outside" / "secret.md")
    (corpus.folder / "folder").symlink_to(tmp_path / "outside")
    (corpus.folder / "nowhere.md").symlink_to(tmp_path / "outside" / "there-is-no-such-file.md")
    (corpus.folder / "up.md").symlink_to("../../outside/secret.md")
    (corpus.folder / "inside.md").symlink_to("a.md")
    (corpus.folder / "sub").mkdir()
    (corpus.folder / "sub" / "through").symlink_to(tmp_path / "outside" / "deep")
    (corpus.folder / "sub" / "other.txt.bak").symlink_to(tmp_path / "outside" / "secret.md")
    stream = corpus.run()
    assert set(failed(stream)) == {"file.md", "folder", "nowhere.md", "up.md", "through"}
    # One wording, so that nobody learns what lies outside.
    assert len(set(failed(stream).values())) == 1
    assert "VECTORIZE_CORPUS__FOLLOW_LINKS" in failed(stream)["file.md"]
    assert SECRET not in texts(corpus)
    assert {name for name, _ in corpus.rows()} == {"a.md", "inside.md"}
    again = corpus.run()
    assert (again.totals.sum().encoded, set(failed(again))) == (0, set(failed(stream)))


def test_links_are_followed_where_that_is_wanted_and_rows_stay_where_it_is_not_any_more(
    corpus: Installation, tmp_path: Path
) -> None:
    (corpus.folder / "file.md").symlink_to(tmp_path / "outside" / "secret.md")
    (corpus.folder / "folder").symlink_to(tmp_path / "outside" / "deep")
    assert not following(corpus, follow=True).run().failures
    before = corpus.rows()
    assert {name for name, _ in before} == {"a.md", "file.md", "folder/secret.md"}
    stream = following(corpus, follow=False).run()
    assert set(failed(stream)) == {"file.md", "folder"}
    assert corpus.rows() == before
    (corpus.folder / "file.md").unlink()
    corpus.run()
    assert {name for name, _ in corpus.rows()} == {"a.md", "folder/secret.md"}


def test_a_root_that_is_a_link_is_what_was_meant(corpus: Installation, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(corpus.folder)
    assert not corpus.run(link).failures
    single = tmp_path / "single.md"
    single.symlink_to(corpus.folder / "a.md")
    assert not corpus.run(single).failures


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_that_is_put_there_after_the_listing_leads_nowhere(
    corpus: Installation, tmp_path: Path, what: str
) -> None:
    corpus.write("sub/b.md", paragraphs(2))
    listing = FileSource(str(corpus.folder), (".md",), (), ()).list()
    file = listing.files[str(corpus.folder / "sub" / "b.md")]
    if what == "file":
        Path(file.source_id).unlink()
        Path(file.source_id).symlink_to(tmp_path / "outside" / "secret.md")
    else:
        (corpus.folder / "sub").rename(corpus.folder / "other")
        (corpus.folder / "sub").symlink_to(tmp_path / "outside")
        (tmp_path / "outside" / "b.md").write_text(SECRET)
    with pytest.raises(UnreadableFileError, match="leads out of the folder"):
        read_content(file.source_id, 1000, file.within)


@pytest.mark.parametrize("last", [True, False])
def test_a_link_that_is_put_there_after_the_path_was_resolved_leads_nowhere(
    corpus: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    corpus.write("sub/b.md", paragraphs(2))
    file, resolve = corpus.folder / "sub" / "b.md", content.real_parts

    def swapping(path: str, root: str) -> tuple[str, ...]:
        parts = resolve(path, root)
        if last:
            file.unlink()
            file.symlink_to(tmp_path / "outside" / "secret.md")
        else:
            (corpus.folder / "sub").rename(corpus.folder / "other")
            (corpus.folder / "sub").symlink_to(tmp_path / "outside")
            (tmp_path / "outside" / "b.md").write_text(SECRET)
        return parts

    monkeypatch.setattr(content, "real_parts", swapping)
    with pytest.raises(UnreadableFileError, match="cannot be read"):
        read_content(str(file), 1000, str(corpus.folder))


@pytest.fixture
def swapped(corpus: Installation, tmp_path: Path) -> Iterator[Path]:
    """A file that is now a link that leads out and now none, all the time."""
    ended, file, new = threading.Event(), corpus.folder / "b.md", corpus.folder / "new"
    secret = tmp_path / "outside" / "secret.md"
    file.write_text("harmless")

    def swap() -> None:
        while not ended.is_set():
            new.symlink_to(secret)
            new.rename(file)
            new.write_text("harmless")
            new.rename(file)

    thread = threading.Thread(target=swap)
    thread.start()
    yield file
    ended.set()
    thread.join()


def test_while_links_are_swapped_nothing_outside_is_embedded(corpus: Installation, swapped: Path) -> None:
    for _ in range(5):
        corpus.run(force=True)
        assert SECRET not in texts(corpus)


def test_while_links_are_swapped_a_read_ends_with_the_file_or_a_refusal(corpus: Installation, swapped: Path) -> None:
    ends = Counter(read_or_refused(swapped, corpus.folder) for _ in range(5_000))
    assert not {end for end in ends if SECRET in end}
    # the link itself may have gone while its target was being looked up
    assert all("harmless" in end or LEADS_OUT in end or "cannot be read" in end or not end for end in ends), ends
    assert len(ends) > 1, "nothing was swapped"


def read_or_refused(file: Path, folder: Path) -> str:
    try:
        return read_content(str(file), 1000, str(folder)).decode()
    except UnreadableFileError as error:
        return str(error)


# What is no file


def make_odd(folder: Path, suffix: str) -> dict[str, str]:
    """Everything that is no regular file, and what it is called."""
    os.mkfifo(folder / f"pipe{suffix}")
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(folder)  # such addresses are short
        try:
            listening.bind(f"socket{suffix}")
        finally:
            os.chdir(here)
    (folder / f"zero{suffix}").symlink_to("/dev/zero")
    (folder / f"terminal{suffix}").symlink_to("/dev/tty")
    (folder / f"piped{suffix}").symlink_to(folder / f"pipe{suffix}")
    return {"pipe": "a named pipe", "socket": "a socket", "zero": "a device", "terminal": "a device",
            "piped": "a named pipe"}  # fmt: skip


@pytest.mark.parametrize("follow", [False, True])
def test_documents_that_are_no_files_are_listed_and_not_waited_for(corpus: Installation, follow: bool) -> None:
    kinds = make_odd(corpus.folder, ".md")
    found = failed(following(corpus, follow).run())
    assert set(found) == {f"{name}.md" for name in kinds}
    for name, kind in kinds.items():
        outside = name in ("zero", "terminal") and not follow
        assert ("leads out" if outside else kind) in found[f"{name}.md"]
    assert {name for name, _ in corpus.rows()} == {"a.md"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_clip(tmp_path_factory.mktemp("models") / "clip"))


def test_images_that_are_no_files_are_listed_and_not_waited_for(tmp_path: Path, clip: str) -> None:
    gallery = Gallery(tmp_path / "installation", clip)
    (gallery.folder / "a.png").write_bytes(picture(1, 2))
    kinds = make_odd(gallery.folder, ".png")
    found = failed(gallery.run())
    assert set(found) == {f"{name}.png" for name in kinds}
    assert set(gallery.vectors()) == {"a.png"}


@pytest.mark.parametrize("name", ["pipe", "socket", "zero", "terminal", "piped", "folder", "sub/../pipe"])
@pytest.mark.parametrize("within", [True, False])
def test_reading_what_is_no_file_says_so_at_once(tmp_path: Path, name: str, within: bool) -> None:
    make_odd(tmp_path, "")
    (tmp_path / "folder").mkdir()
    (tmp_path / "sub").mkdir()
    with pytest.raises(UnreadableFileError, match=r"no regular file|leads out"):
        read_content(str(tmp_path / name), 1000, str(tmp_path) if within else None)


def test_a_pipe_that_is_put_there_after_the_listing_is_not_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text("a")
    listed = FileSource(str(tmp_path), (".md",), (), ()).list().files[str(file)]
    file.unlink()
    os.mkfifo(file)
    for within in (None, listed.within):
        with pytest.raises(UnreadableFileError, match="a named pipe"):
            read_content(str(file), 1000, within)
    with ParserPool(SETTINGS) as pool, pytest.raises(UnreadableFileError, match="a named pipe"):
        pool.submit(str(file)).result()


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["/proc/kmsg", "/proc/self/pagemap", "/proc/self/mem", "/proc/kcore", "/dev/kmsg"])
def test_files_of_the_kernel_are_read_to_a_limit_and_never_waited_for(name: str) -> None:
    with suppress(UnreadableFileError):
        assert len(read_content(name, 10_000)) <= 10_000


def test_a_file_that_grows_while_it_is_read_is_read_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_bytes(b"x" * (SETTINGS.max_file_bytes + 10))
    with ParserPool(SETTINGS) as pool, pytest.raises(TooLargeError):
        pool.submit(str(file)).result()
    assert len(read_content(str(file), 100)) == 100


# Reads that never end


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A mount that hangs: reading begins, and does not end while the test goes on."""
    begun, released = threading.Event(), threading.Event()

    def hang(*_: object) -> bytes:
        begun.set()
        released.wait()
        return b""

    monkeypatch.setattr(images_module, "read_content", hang)
    yield begun
    released.set()


def test_a_run_that_is_left_does_not_wait_for_a_read_that_never_ends(
    tmp_path: Path, clip: str, hanging: threading.Event
) -> None:
    gallery = Gallery(tmp_path / "installation", clip)
    (gallery.folder / "a.png").write_bytes(picture(1, 2))
    today = datetime.now(UTC).date()
    model = gallery.settings.models.image
    request = FolderRequest("gallery", model, "drain", (today, today), "run")
    source, reader = (
        gallery_source(gallery.settings, str(gallery.folder)),
        ImageReader(gallery.settings, EmbeddingConfig(model)),
    )
    ended = threading.Event()
    stream = open_folder(gallery.settings, request, source, reader, gallery.store, gallery._lease)

    def read() -> None:
        with stream:
            assert list(stream) == []
        ended.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert hanging.wait(60)
    reader.close()
    assert ended.wait(60)


def test_threads_that_read_end_with_what_they_were_made_for() -> None:
    threads, released = ReadingThreads(2, "test"), threading.Event()
    slow = [threads.submit(released.wait) for _ in range(3)]
    quick: Callable[[], int] = lambda: 1  # noqa: E731
    waiting = threads.submit(quick)
    closing = threading.Timer(0.2, threads.close)
    closing.start()
    with pytest.raises(CancelledError):
        threads.result(waiting)
    assert threads.submit(quick).cancelled()
    released.set()
    assert [future.cancelled() or future.result(timeout=30) for future in slow]


def _ingest_what_hangs(folder: Path) -> None:
    """`vectorize ingest` in a session of its own, whose first read says so and never ends."""

    def hang(*_: object) -> bytes:
        print("reading", file=sys.stderr, flush=True)
        time.sleep(3600)
        return b""

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with patch.object(images_module, "read_content", hang):
        call(["vectorize", "ingest", str(folder), "--kind", "images"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_run_whose_read_never_ends(
    home: Path, tmp_path: Path, clip: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder, said = tmp_path / "pictures", tmp_path / "said"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(1, 2))
    said.touch()
    monkeypatch.setenv("VECTORIZE_MODELS__IMAGE", clip)
    process = Fork(_ingest_what_hangs, folder, err=said)
    try:
        until("the read", lambda: "reading" in said.read_text() or process.poll() is not None)
        os.kill(process.pid, number)
        assert process.wait(120) == 130, said.read_text()
        assert "interrupted" in said.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()


# The commands


def test_ingest_lists_what_it_does_not_follow_and_follows_when_told(tmp_path: Path, vectorize_here: Vectorize) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("A boat lies in the harbour.")
    (tmp_path / "b.md").write_text("The sea is far.")
    (folder / "b.md").symlink_to(tmp_path / "b.md")
    os.mkfifo(folder / "pipe.md")
    done = vectorize_here("ingest", folder, "--json")
    assert done.code == 6, done.err
    assert (done.json["encoded"], done.json["failed"]) == (1, 2)
    reasons = {Path(each["source"]).name: each["message"] for each in done.json["failures"]}
    assert "--follow-links" in reasons["b.md"]
    assert "a named pipe" in reasons["pipe.md"]
    (folder / "pipe.md").unlink()
    followed = vectorize_here("ingest", folder, "--follow-links", "--json")
    assert followed.code == 0, followed.err
    assert followed.json["encoded"] == 1


def test_searching_by_a_pipe_is_refused_at_once(
    tmp_path: Path, clip: str, vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTORIZE_MODELS__IMAGE", clip)
    os.mkfifo(tmp_path / "pipe.png")
    done = vectorize_here("search", "--image", tmp_path / "pipe.png")
    assert done.code == 2
    assert "a named pipe" in done.err


def test_submitting_lines_without_end_is_refused(vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", "localhost:1")
    began = time.monotonic()
    done = vectorize_here("submit", "--file", "/dev/zero")
    assert done.code == 2, done.err
    assert "longer than" in done.err
    assert time.monotonic() - began < 250
