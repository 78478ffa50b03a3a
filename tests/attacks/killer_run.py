"""A run in a process of its own, over messages that kill it: `run` is called in a fork (`tests.forks`), with a mapping.

home, bootstrap_servers, topic_prefix, kafka   of the installation
shard, replay, force    of the run
pause    stands still at the first text, with the file `paused` written, until it is told to end
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.forks import Fork
from tests.pipeline.requests.installation import Installation, install
from tests.servers.dev import until
from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.pipeline.requests.stream import RequestStream
from vectorize_pipelines.pipeline.writing import DirectWriter, written

#: What a text has to hold for a run to die of it, and where.
KILLING, RAISING = "KILL-ENCODE", "RAISE-ENCODE"
FAILED = 1
RUN_SECONDS = 240


class Pause:
    """Stands still at the first text, with `file` written, until SIGTERM, which ends the run in order."""

    def __init__(self, file: Path):
        self._file = file
        self._over = threading.Event()

    def __call__(self, texts: Sequence[Any]) -> None:
        self._file.touch()
        self._over.wait(RUN_SECONDS)

    def ends_at_sigterm(self) -> None:
        """Called in the main thread."""

        def end(*_: object) -> None:
            self._over.set()
            sys.exit(0)

        signal.signal(signal.SIGTERM, end)


def end_once_paused(child: Fork, home: Path, number: signal.Signals) -> None:
    """Send a run a signal as soon as it stands still, and wait for its end."""
    file = home / "paused"
    try:
        until("the run to pause", lambda: file.exists() or child.poll() is not None)
        assert child.poll() is None, "the run ended before it paused"
        os.kill(child.pid, number)
        child.wait(RUN_SECONDS)
    finally:
        child.kill()
        file.unlink(missing_ok=True)


def encode(texts: Sequence[Any]) -> None:
    """Stands in for a native library with a defect."""
    if any(KILLING in str(text) for text in texts):
        os.kill(os.getpid(), signal.SIGKILL)
    if any(RAISING in str(text) for text in texts):
        raise ValueError("an index out of range, deep within a library")


def open_run(installation: Installation, specification: Mapping[str, Any]) -> RequestStream:
    """The stream of the run."""
    run_id = f"run-{os.getpid()}"
    if specification.get("replay"):
        return installation.open_replay(run_id=run_id)
    return installation.open_drain(run_id=run_id, shard=Shard.parse(specification.get("shard", "0/1")))


def run(specification: Mapping[str, Any]) -> None:
    """Ends with 0, by SIGKILL, or with 1 after an error."""
    installation = install(
        Path(specification["home"]),
        specification["bootstrap_servers"],
        specification["topic_prefix"],
        kafka=specification["kafka"],
    )
    installation.on_encode = encode
    if "pause" in specification:
        pause = Pause(Path(specification["home"], "paused"))
        installation.on_encode = pause
        pause.ends_at_sigterm()
    try:
        with open_run(installation, specification) as stream:
            for _ in written(DirectWriter(installation.settings, installation.store), stream):
                pass
    except Exception as error:  # noqa: BLE001 (the parent sees how the process ended)
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(FAILED)
    os._exit(0)
