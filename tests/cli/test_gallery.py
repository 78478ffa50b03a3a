"""A folder of images on the command line: ingested, searched by image and by text, and what is bad among it."""

from pathlib import Path

import pytest

from tests.commands import Vectorize
from tests.encoders.tiny_clips import build_clip
from tests.images.pictures import encoded, photo

pytestmark = pytest.mark.slow


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four photographs and half a one."""
    monkeypatch.setenv("VECTORIZE_MODELS__IMAGE", str(build_clip(tmp_path / "clip")))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(encoded(photo(number, 160, 120), "JPEG"))
    (folder / "half.jpg").write_bytes(encoded(photo(9, 160, 120), "JPEG")[:1500])
    return folder


def test_images_are_ingested_and_found(vectorize_here: Vectorize, pictures: Path) -> None:
    done = vectorize_here("ingest", pictures, "--json")
    assert done.code == 6, done.err
    assert (done.json["collection"], done.json["encoded"], done.json["failed"]) == ("gallery", 4, 1)
    (failure,) = done.json["failures"]
    assert (failure["source"], failure["error"]) == (str(pictures / "half.jpg"), "CorruptImageError")

    hits = vectorize_here("search", "--image", pictures / "2.jpg", "--limit", 1, "--json").json
    assert [hit["uri"] for hit in hits] == [str(pictures / "2.jpg")]
    assert hits[0]["score"] > 0.999

    by_text = vectorize_here("search", "--collection", "gallery", "--limit", 9, "--json", "a lighthouse at dusk")
    assert len(by_text.json) == 4
    filtered = vectorize_here(
        "search", "--collection", "gallery", "--filter", "name=3.jpg", "--json", "a lighthouse"
    ).json
    assert [hit["metadata"]["name"] for hit in filtered] == ["3.jpg"]
    shown = vectorize_here("search", "--image", pictures / "2.jpg", "--limit", 1)
    assert shown.out.startswith("1. 1.000")
    assert str(pictures / "2.jpg") in shown.out

    refused = vectorize_here("collections", "reembed", "gallery", "--model", "sentence-transformers/all-MiniLM-L6-v2")
    assert refused.code == 2
    assert "'gallery' holds 4 images, and sentence-transformers/all-MiniLM-L6-v2 encodes texts only" in refused.err
    assert [each["state"] for each in vectorize_here("collections", "show", "gallery", "--json").json] == ["live"]

    for file in pictures.iterdir():
        file.unlink()
    refused = vectorize_here("ingest", pictures, "--json")
    assert (refused.code, refused.json["deleted"]) == (3, 0)
    assert "holds none of the 5 files that it had" in refused.json["errors"][0]
    emptied = vectorize_here("ingest", pictures, "--allow-empty", "--json")
    assert (emptied.json["collection"], emptied.json["deleted"]) == ("gallery", 4)
    assert "holds none of the 5 files that it had" in emptied.err


def test_what_cannot_be_searched_by_says_why(vectorize_here: Vectorize, pictures: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "note.txt").write_text("The lamp burns paraffin.")
    (documents / "lamp.jpg").write_bytes((pictures / "1.jpg").read_bytes())
    assert vectorize_here("ingest", documents, "--json").json["collection"] == "corpus"
    assert vectorize_here("ingest", documents, "--kind", "images", "--json").json["collection"] == "gallery"

    broken = vectorize_here("search", "--image", pictures / "half.jpg")
    assert broken.code == 2
    assert "half.jpg: cannot be decoded as JPEG" in broken.err
    wrong = vectorize_here("search", "--collection", "corpus", "--image", pictures / "1.jpg")
    assert wrong.code == 2
    assert "text" in wrong.err
    assert vectorize_here("search", "lamp", "--image", pictures / "1.jpg").code == 2
    assert vectorize_here("search").code == 2


def test_what_was_embedded_of_a_path_decides_what_is_brought_up_to_date(
    vectorize_here: Vectorize, pictures: Path
) -> None:
    note = pictures / "note.txt"
    note.write_text("The lamp burns paraffin.")
    assert vectorize_here("ingest", pictures, "--json").json["collection"] == "corpus"
    note.unlink()
    gone = vectorize_here("ingest", pictures, "--allow-empty", "--json").json
    assert (gone["collection"], gone["deleted"]) == ("corpus", 1)

    first = vectorize_here("ingest", pictures, "--collection", "photos", "--json").json
    assert (first["collection"], first["encoded"]) == ("photos", 4)
    note.write_text("The lamp burns paraffin.")
    (pictures / "0.jpg").unlink()
    again = vectorize_here("ingest", pictures, "--collection", "photos", "--json").json
    assert (again["collection"], again["deleted"], again["skipped"]) == ("photos", 1, 3)
    for file in pictures.glob("*.jpg"):
        file.unlink()
    assert vectorize_here("ingest", pictures, "--allow-empty", "--collection", "photos", "--json").json["deleted"] == 3


def test_both_kinds_of_one_path_are_told_apart_by_the_user(vectorize_here: Vectorize, pictures: Path) -> None:
    (pictures / "note.txt").write_text("The lamp burns paraffin.")
    vectorize_here("ingest", pictures, "--kind", "documents")
    vectorize_here("ingest", pictures, "--kind", "images")
    refused = vectorize_here("ingest", pictures)
    assert refused.code == 2
    assert "--kind" in refused.err
