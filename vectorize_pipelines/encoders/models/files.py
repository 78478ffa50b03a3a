"""Writing small files so that no reader ever sees half of one. Used for what is kept between processes."""

import json
import uuid
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: str) -> None:
    """Write `content` beside `path` and move it there. Raises `OSError` where that cannot be done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        beside.write_text(content, encoding="utf-8")
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def remember(path: Path, content: str) -> None:
    """Write whole what only saves work: a read-only or full disk costs the next process that work again."""
    try:
        write_whole(path, content)
    except OSError:
        return


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in `path`; {} where it is missing or damaged, which means that it is made again."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
