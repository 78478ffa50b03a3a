"""The manifest survives what happens to files."""

from pathlib import Path

from vectorize_pipelines.sources.files import SourceFile
from vectorize_pipelines.state.damage import left_aside
from vectorize_pipelines.state.manifest import Manifest, ManifestEntry

ENTRY = ManifestEntry("/d/a.md", 4, 17, "", "hash", "print", 3)


def test_entries_come_back_as_they_were_recorded(tmp_path: Path) -> None:
    failed = ManifestEntry("/d/b.md", 0, 1, "etag", "", "print", 0, "EmptyDocumentError", "it is empty", True)
    manifest = Manifest.open(tmp_path / "deep" / "m.sqlite")
    manifest.record([ENTRY, failed])
    manifest.close()
    manifest = Manifest.open(tmp_path / "deep" / "m.sqlite")
    assert manifest.entries() == {"/d/a.md": ENTRY, "/d/b.md": failed}
    manifest.record([], ["/d/a.md"])
    assert manifest.entries() == {"/d/b.md": failed}


def test_a_damaged_manifest_is_put_aside_and_made_again(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    damage = b"this is no database at all" * 100
    file.write_bytes(damage)
    manifest = Manifest.open(file)
    assert manifest.entries() == {}
    (aside,) = left_aside(tmp_path)
    assert aside.read_bytes() == damage


def test_what_makes_a_file_worth_reading_again() -> None:
    file = SourceFile("/d/a.md", 4, 17)
    assert ENTRY.is_of(file, "print")
    assert not ENTRY.is_of(file, "another model")
    assert not ENTRY.is_of(SourceFile("/d/a.md", 5, 17), "print")
    assert not ENTRY.is_of(SourceFile("/d/a.md", 4, 18), "print")
    assert not ENTRY.is_of(SourceFile("/d/a.md", 4, 17, "etag"), "print")
