"""A small corpus over three days, and an installation that embeds it."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

_TODAY = datetime.now(UTC).date()
#: The partition that drain runs are runs of here: one for all, though midnight may pass while they run.
TODAY = _TODAY.isoformat()
#: Three days in a row, all of them past.
DAYS = [_TODAY - timedelta(days=n) for n in (3, 2, 1)]


def write_document(folder: Path, name: str, text: str, day: int = 0) -> Path:
    """A document of one of the three days."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    at = datetime(DAYS[day].year, DAYS[day].month, DAYS[day].day, 12, tzinfo=UTC).timestamp()
    os.utime(file, (at, at))
    return file


@pytest.fixture
def corpus(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four documents on three days; one of them cannot be read."""
    folder = tmp_path / "corpus"
    write_document(folder, "lamp.md", "# The lamp\n\nThe lamp of the lighthouse burns paraffin.\n", 0)
    write_document(folder, "boat.txt", "The supply boat lands on Tuesdays, weather permitting.", 1)
    write_document(folder, "灯塔.md", "# 灯塔\n\n灯塔建于1897年。\n", 2)
    write_document(folder, "bad.pdf", "this is no PDF", 2)
    monkeypatch.setenv("VECTORIZE_CORPUS__PATH", str(folder))
    return folder
