"""Every bad file is named with its reason and its remedy, and the good one beside them is embedded."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from reportlab.pdfgen.canvas import Canvas

from tests.commands import COMMAND, Vectorize
from tests.documents import builders

#: File -> (error class, what the message says).
EXPECTED = {
    "corrupt.pdf": ("CorruptDocumentError", "PDF"),
    "encrypted.pdf": ("EncryptedDocumentError", "password"),
    "bomb.docx": ("DecompressionLimitError", "VECTORIZE_DOCUMENTS__MAX_DECOMPRESSED_BYTES"),
    "binary.txt": ("NotTextError", "text"),
    "empty.md": ("EmptyDocumentError", "empty"),
    "huge.txt": ("TooLargeError", "VECTORIZE_DOCUMENTS__MAX_FILE_BYTES"),
    "columns.csv": ("MissingColumnError", "VECTORIZE_DOCUMENTS__TEXT_COLUMNS"),
    "scan.pdf": ("NoTextLayerError", "text"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "good.md").write_text("# Good\n\nThe tide gauge is read every six minutes.")
    (folder / "corrupt.pdf").write_bytes(b"%PDF-1.7 and then nothing that makes sense")
    (folder / "encrypted.pdf").write_bytes(builders.encrypted_pdf(builders.pdf(["a secret"]), "hunter2"))
    (folder / "bomb.docx").write_bytes(builders.zip_bomb(500 * 2**20))
    (folder / "binary.txt").write_bytes(os.urandom(5000) + b"\0")
    (folder / "empty.md").write_bytes(b"")
    with (folder / "huge.txt").open("wb") as huge:
        huge.truncate(200 * 2**20)
    (folder / "columns.csv").write_text("id,body\n1,hello\n")
    scan = Canvas(str(folder / "scan.pdf"))
    scan.drawInlineImage(Image.new("L", (200, 200), 128), 0, 0, 595, 842)
    scan.save()
    for name in (b"archive.7z", b"a.drawing", b"another.drawing", b"Makefile", b"not utf-8.\xff"):
        (folder / os.fsdecode(name)).touch()
    return folder


@pytest.mark.slow
def test_bad_files_are_listed_and_the_good_one_is_embedded(vectorize_here: Vectorize, folder: Path) -> None:
    done = vectorize_here("ingest", folder, "--json")
    assert done.code == 6, done.err
    assert done.json["encoded"] == 1
    failures = {Path(failure["source"]).name: failure for failure in done.json["failures"]}
    assert {name: failure["error"] for name, failure in failures.items()} == {
        name: error for name, (error, _) in EXPECTED.items()
    }
    for name, (_, said) in EXPECTED.items():
        assert said.lower() in failures[name]["message"].lower(), failures[name]

    printed = vectorize_here("ingest", folder)
    assert printed.code == 6
    for name in EXPECTED:
        assert name in printed.out
    assert "files of other kinds are left out: 2 without a suffix, 2 .drawing, 1 .7z\n" in printed.err
    doctor = vectorize_here("doctor", "--json")
    assert doctor.code == 0

    (hit,) = vectorize_here("search", "how often is the tide gauge read", "--json").json
    assert hit["source_id"] == str(folder / "good.md")


def test_no_path_is_not_the_working_directory(vectorize_here: Vectorize) -> None:
    done = vectorize_here("ingest", "")
    assert done.code == 2
    assert "Invalid value for PATH: is empty" in done.err


#: Root may read every file, unless it runs without the capability for it.
AS_OTHERS = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.mark.slow
def test_an_unreadable_file_is_tried_again(vectorize_here: Vectorize, folder: Path) -> None:
    for name in EXPECTED:
        (folder / name).unlink()
    (folder / "good.md").chmod(0)
    command = [*AS_OTHERS, *COMMAND, "ingest", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 6, done.stderr
    assert [failure["error"] for failure in json.loads(done.stdout)["failures"]] == ["UnreadableFileError"]
    (folder / "good.md").chmod(0o600)
    assert vectorize_here("ingest", folder, "--json").json["encoded"] == 1


def test_a_home_that_cannot_be_entered_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    command = [*AS_OTHERS, *COMMAND, "ingest", str(folder)]
    environment = os.environ | {"VECTORIZE_HOME": str(tmp_path / "closed" / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    (tmp_path / "closed").chmod(0o700)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'closed' / 'home'} cannot be written")
    assert "VECTORIZE_HOME" in done.stderr
