"""A folder with archives, ingested by the command: what is inside is found, replaced and deleted with its archive."""

from pathlib import Path

from tests.commands import Vectorize
from tests.documents.packages import package


def found(vectorize_here: Vectorize, query: str, *arguments: str) -> list[str]:
    hits = vectorize_here("search", query, *arguments, "--json").json
    return [hit["uri"] for hit in hits]


def test_members_are_found_replaced_and_deleted_with_their_archive(vectorize_here: Vectorize, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    archive = folder / "a.zip"
    pier, fees = "The north pier is closed.", "text,year\nForty crowns a night,2024\n"
    archive.write_bytes(
        package({"in/pier.txt": pier, "fees.csv": fees, "inner.zip": package({"b.md": "# Tide\nLow."})})
    )
    (folder / "plain.txt").write_text("The harbour master is away.")

    first = vectorize_here("ingest", folder, "--json")
    assert (first.code, first.json["encoded"]) == (0, 4), first.err
    assert found(vectorize_here, "is the pier closed", "--limit", "1") == [f"{archive}!/in/pier.txt"]
    assert found(vectorize_here, "tide", "--filter", "member = inner.zip!/b.md") == [f"{archive}!/inner.zip!/b.md"]
    assert found(vectorize_here, "fee", "--filter", "year = 2024") == [f"{archive}!/fees.csv"]

    again = vectorize_here("ingest", folder, "--json")
    assert (again.code, again.json["encoded"]) == (0, 0), again.err

    archive.write_bytes(package({"in/pier.txt": pier, "new.txt": "The crane is new."}))
    changed = vectorize_here("ingest", folder, "--json")
    assert (changed.code, changed.json["encoded"]) == (0, 1), changed.err
    assert set(found(vectorize_here, "harbour")) == {
        f"{archive}!/in/pier.txt",
        f"{archive}!/new.txt",
        str(folder / "plain.txt"),
    }

    archive.unlink()
    assert vectorize_here("ingest", folder).code == 0
    assert found(vectorize_here, "harbour") == [str(folder / "plain.txt")]


def test_members_are_cut_again_for_another_generation(vectorize_here: Vectorize, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    message, archive = folder / "a.eml", folder / "a.zip"
    long = "The north pier is closed to all but the harbour master. " * 12
    message.write_text(
        "Subject: The pier\nFrom: ada@example.com\nContent-Type: multipart/mixed; boundary=x\n\n--x\n\n"
        f"{long}\n--x\nContent-Disposition: attachment; filename=b.txt\n\n{long}\n"
        "--x--\n"
    )
    archive.write_bytes(package({"in/c.txt": long.replace("north", "south")}))
    first = vectorize_here("ingest", folder, "--collection", "mine", "--json")
    assert (first.code, first.json["encoded"]) == (0, 3), first.err
    model = ("--model", "sentence-transformers/all-MiniLM-L6-v2")
    assert vectorize_here("collections", "reembed", "mine", *model, "--chunk-tokens", "64").code == 0
    assert vectorize_here("collections", "switch", "mine", "--force").code == 0
    hits = found(vectorize_here, "is the pier closed", "--collection", "mine", "--limit", "30")
    assert set(hits) == {str(message), f"{message}!/b.txt", f"{archive}!/in/c.txt"}
    assert len(hits) > 6
