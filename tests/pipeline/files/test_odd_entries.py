"""What lies in folders beside files: links to what is away, temporary files, a disk that is not mounted, old times."""

import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.pipeline.files.installation import Installation, install, paragraphs
from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.errors import SourceError

#: So many that each of two shards owns some, wherever the folder lies: a hash of their paths divides them.
FILES = 40


@pytest.fixture
def installation(tmp_path: Path, shared_parsers: None) -> Installation:
    return install(tmp_path / "installation")


def failures(installation: Installation, **changes: Any) -> dict[str, str]:
    stream = installation.run(**changes)
    return {os.path.relpath(each.source_id, installation.folder): each.error_class for each in stream.failures}


def test_rows_stay_while_what_a_link_leads_to_is_away(installation: Installation) -> None:
    share, away = installation.folder / ".share", installation.folder / ".away"
    installation.write(".share/a.md", paragraphs(1))
    installation.write(".share/docs/b.md", paragraphs(2))
    (installation.folder / "a.md").symlink_to(share / "a.md")
    (installation.folder / "docs").symlink_to(share / "docs")
    installation.write("c.md", paragraphs(3))
    assert failures(installation) == {}
    before = installation.rows()
    assert len(before) == 3

    share.rename(away)
    for _ in range(2):
        assert failures(installation, allow_empty=False) == {
            "a.md": "UnreadableFileError",
            "docs": "UnreadableFileError",
        }
        assert installation.rows() == before
    away.rename(share)
    assert failures(installation) == {}
    assert len(installation.encoder.texts) == 3

    (installation.folder / "docs").unlink()
    assert failures(installation) == {}
    assert {name for name, _ in installation.rows()} == {"a.md", "c.md"}


def test_a_folder_that_holds_nothing_any_more_is_refused_unless_it_is_meant(installation: Installation) -> None:
    for n in range(FILES):
        installation.write(f"{n}.md", paragraphs(n))
    installation.write("beside.png", "of another kind")
    installation.run(allow_empty=False)
    before = installation.rows()
    for n in range(FILES):
        (installation.folder / f"{n}.md").unlink()
    (installation.folder / ".lock").touch()
    for shard in (Shard(0, 1), *Shard.layout(2)):
        with pytest.raises(SourceError, match=r"holds none of the .*nothing is deleted.*--allow-empty"):
            installation.run(allow_empty=False, shard=shard)
    assert installation.rows() == before

    installation.write("new.md", paragraphs(9))  # so that the folder is there
    assert installation.run(allow_empty=False).totals.sum().deleted == FILES
    (installation.folder / "new.md").unlink()
    assert installation.run(allow_empty=True).totals.sum().deleted == 1
    assert installation.run(allow_empty=False).totals.sum().documents == 0  # of which nothing is known any more


def test_a_shard_without_files_is_no_empty_folder(installation: Installation) -> None:
    for n in range(FILES):
        installation.write(f"{n}.md", paragraphs(n))
    installation.run(allow_empty=False)
    shards = Shard.layout(2)
    names = [str(installation.folder / f"{n}.md") for n in range(FILES)]
    gone = [name for name in names if shards[0].owns_source(name)]
    assert 0 < len(gone) < FILES
    for name in gone:
        Path(name).unlink()
    deleted = [installation.run(allow_empty=False, shard=shard).totals.sum().deleted for shard in shards]
    assert deleted == [len(gone), 0]


def test_a_bucket_that_lists_nothing_is_refused(installation: Installation) -> None:
    memory, bucket = fsspec.filesystem("memory"), "memory://emptied"
    memory.pipe("/emptied/a.md", paragraphs(1).encode())
    installation.run(bucket, allow_empty=False)
    memory.rm("/emptied/a.md")
    memory.makedirs("/emptied", exist_ok=True)
    with pytest.raises(SourceError, match="holds none of the 1 files"):
        installation.run(bucket, allow_empty=False)
    memory.rm("/emptied", recursive=True)
    with pytest.raises(SourceError, match="nothing lies there"):
        installation.run(bucket, allow_empty=True)
    assert len(installation.rows()) == 1


def test_a_root_that_is_a_link_to_nowhere_is_refused(installation: Installation) -> None:
    installation.write("a.md", paragraphs(1))
    root = installation.folder.parent / "link"
    root.symlink_to(installation.folder)
    installation.run(root)
    shutil.move(installation.folder, installation.folder.parent / "away")
    with pytest.raises(SourceError, match="No such file"):
        installation.run(root, allow_empty=True)
    shutil.move(installation.folder.parent / "away", installation.folder)
    assert installation.run(root).totals.sum().encoded == 0


def test_temporary_files_are_counted_and_no_failures(installation: Installation) -> None:
    installation.write("report.md", paragraphs(1))
    for name in ("~$report.docx", ".~lock.report.md#", "report.md~", "Thumbs.db", "b.pdf.crdownload", "c.md.part"):
        installation.write(name, "x")
    assert failures(installation) == {}
    assert dict(installation.run().figures()) == {"left_out": 6}
    assert [installation.run(shard=shard).figures()["left_out"] for shard in Shard.layout(2)] == [6, 0]


def test_a_file_ingested_by_its_name_stays_while_it_lies_there(installation: Installation) -> None:
    installation.write("letter.doc", "{\\rtf1 High at noon.}")
    letter = installation.folder / "letter.doc"
    installation.run(letter)
    for _ in range(2):
        stream = installation.run(allow_empty=False)
        assert (len(installation.rows()), dict(stream.other_kinds())) == (1, {".doc": 1})
    installation.write("a.md", paragraphs(1))
    letter.unlink()
    assert installation.run(allow_empty=False).totals.sum().deleted == 1
    assert {name for name, _ in installation.rows()} == {"a.md"}


def test_contents_are_compared_where_size_and_time_are_the_same(installation: Installation) -> None:
    for n in (1, 2, 3):
        installation.write(f"{n}.md", paragraphs(n))
    installation.write("bad.pdf", "no PDF at all")
    installation.run()
    encoded = len(installation.encoder.texts)
    installation.write("2.md", paragraphs(7))  # as long as before, at the same time
    assert installation.run().totals.sum().encoded == 0
    assert installation.run(reconcile=True).totals.sum().encoded == 0

    for shard in Shard.layout(2):
        installation.run(reconcile=True, compare_contents=True, shard=shard)
    assert len(installation.encoder.texts) == encoded + 1
    assert "island number 7" in installation.rows()["2.md", 0][0]

    again = installation.run(reconcile=True, compare_contents=True).totals.sum()
    assert (again.documents, again.encoded, again.failed) == (4, 0, 1)
