"""A run over a folder in a process of its own, whose documents may kill it: `run` is called in a fork (`tests.forks`).

MODE: `deadly`: the encoder dies of what says so (`killer_run`), `pausing`: it stands still at the first text, with the
file `paused` written. The failures of a run that came to its end are in the file `failures.json` of its home.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.attacks.killer_run import FAILED, Pause, encode
from tests.pipeline.files.installation import CountingEncoder, Installation
from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.encoders.base import Purpose, Vectors
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.stores import open_store

#: As the environment has it for the command line, too.
SETTINGS = {
    "VECTORIZE_DOCUMENTS__CHUNK_TOKENS": "32",
    "VECTORIZE_DOCUMENTS__OVERLAP_TOKENS": "0",
    "VECTORIZE_DOCUMENTS__PARSER_PROCESSES": "1",
    "VECTORIZE_CACHE__ENABLED": "off",
}


class DeadlyEncoder(CountingEncoder):
    """Dies of texts that say so, or stands still at the first one."""

    def __init__(self, on_encode: Callable[[Sequence[Any]], None]):
        super().__init__()
        self._on_encode = on_encode

    def encode(self, items: Sequence[Any], purpose: Purpose = "document") -> Vectors:
        self._on_encode(items)
        return super().encode(items, purpose)


def installation_in(home: Path, folder: Path) -> Installation:
    """Without the embedding cache, and with small chunks."""
    settings = load_settings({"VECTORIZE_HOME": str(home), **SETTINGS})
    return Installation(settings, folder, open_store(settings.store, settings.home))


def run(home: Path, folder: Path, mode: str, force: bool, shard: str = "0/1") -> None:
    """Ends with 0, by SIGKILL, or with 1 after an error."""
    installation = installation_in(home, folder)
    pause = Pause(home / "paused")
    pause.ends_at_sigterm()
    installation.encoder = DeadlyEncoder(pause if mode == "pausing" else encode)
    try:
        stream = installation.run(run_id=f"run-{os.getpid()}", force=force, shard=Shard.parse(shard))
    except Exception as error:  # noqa: BLE001 (the parent sees how the process ended)
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(FAILED)
    (home / "failures.json").write_text(json.dumps([asdict(failure) for failure in stream.failures]))
