"""Documents of three days, for tests of the assets, sensors and runs over a folder."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

#: Of messages of "today".
NOW = datetime.now(UTC)
_TODAY = NOW.date()
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
