"""The manifest in a file survives what happens to files."""

from contextlib import closing
from pathlib import Path

from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state import home
from vectorize_pipelines.state.damage import left_aside
from vectorize_pipelines.state.manifest import ManifestEntry, open_existing_manifest, open_manifest
from vectorize_pipelines.state.manifest.sqlite import SQLiteManifest

ENTRY = ManifestEntry("/d/a.md", 4, 17, "", "hash", "print", 3)


def test_entries_come_back_from_a_folder_that_is_made(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "m.sqlite"
    with closing(SQLiteManifest.open(file)) as manifest:
        manifest.record([ENTRY])
    with closing(SQLiteManifest.open(file)) as manifest:
        assert list(manifest.entries()) == [ENTRY]


def test_a_damaged_manifest_is_put_aside_and_made_again(tmp_path: Path) -> None:
    file = tmp_path / "m.sqlite"
    damage = b"this is no database at all" * 100
    file.write_bytes(damage)
    with closing(SQLiteManifest.open(file)) as manifest:
        assert list(manifest.entries()) == []
    (aside,) = left_aside(tmp_path)
    assert aside.read_bytes() == damage


def test_one_machine_has_a_file_for_each_collection(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    file = home.manifest_file(settings, "corpus")
    assert open_existing_manifest(settings, "corpus") is None
    assert not file.parent.exists()
    with closing(open_manifest(settings, "corpus")) as manifest:
        manifest.record([ENTRY])
    assert file.exists()
    existing = open_existing_manifest(settings, "corpus")
    assert existing is not None
    with closing(existing):
        assert list(existing.entries()) == [ENTRY]
