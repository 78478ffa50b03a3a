"""Runs `encoders_run.py`, with texts laid out as it wants them and an installation of its own each time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import python

#: A table is held whole while it is embedded; what is measured here is what a run needs beside that.
LINES_OF_A_TABLE = 1_000


@dataclass(frozen=True)
class Texts:
    """The same texts in three forms, each for measuring something."""

    json: Path
    files: Path
    table: Path


def lay_out(place: Path, warm_up: Sequence[str], passages: Sequence[str], *, files: bool = True) -> Texts:
    """Texts in JSON, a text file each, and as lines of JSON Lines files; `files` leaves the second form out."""
    texts = Texts(place / "texts.json", place / "files", place / "table")
    place.mkdir()
    texts.json.write_text(json.dumps({"warm_up": warm_up, "passages": passages}), encoding="utf-8")
    for name, chosen in (("warm_up", warm_up), ("passages", passages)):
        (texts.table / name).mkdir(parents=True)
        lines = [json.dumps({"text": text}) for text in chosen]
        for start in range(0, len(lines), LINES_OF_A_TABLE):
            table = texts.table / name / f"texts-{start:06}.jsonl"
            table.write_text("\n".join(lines[start : start + LINES_OF_A_TABLE]), encoding="utf-8")
        (texts.files / name).mkdir(parents=True)
        for number, text in enumerate(chosen if files else ()):
            (texts.files / name / f"{number:06}.txt").write_text(text, encoding="utf-8")
    return texts


def measured(name: str, source: Path, home: Path, exports: Path, vectors: Path) -> dict[str, Any]:
    """What `encoders_run.py` prints. `home` is made, with nothing in it but the exported models."""
    home.mkdir()
    exports.mkdir(exist_ok=True)
    (home / "encoders").symlink_to(exports)
    done = python("-m", "benchmarks.encoders_run", name, source, vectors, VECTORIZE_HOME=str(home))
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome
