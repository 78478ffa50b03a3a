"""A drain run in a process of its own, which may kill itself.

`python -m tests.pipeline.requests.child SPECIFICATION`, which is JSON:

home, bootstrap_servers, topic_prefix, kafka   of the installation
kill_at       (step, before or after, how often it comes to it first); the steps are those of a batch, in order: encode,
              upsert, ledger, transaction, and `commit` within the last one
kill_after    seconds from when the run is open
pause_at      as kill_at: writes the file `paused` and waits for the parent's signals
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.pipeline.requests.installation import Installation, install
from vectorize_pipelines.kafka.transactions import FencedError, TransactionalProducer
from vectorize_pipelines.messaging.outcomes import OutcomeProducer
from vectorize_pipelines.pipeline.encoding import ItemEncoder
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.state.ledger import RequestLedger

STEPS = ("encode", "upsert", "ledger", "transaction", "commit")
#: What the process ends with when another run has taken its part of the topic.
FENCED = 7


def _hook(owner: Any, method: str, at: tuple[str, str, int], step: str, strike: Callable[[], None]) -> None:
    """Has `strike` called before or after the given call of `owner.method`."""
    wanted, moment, number = at
    original = getattr(owner, method)
    calls = 0

    def hooked(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and moment == "before":
            strike()
        result = original(*arguments, **options)
        if calls == number and moment == "after":
            strike()
        return result

    if step == wanted:
        setattr(owner, method, hooked)


def _hook_all(installation: Installation, at: tuple[str, str, int], strike: Callable[[], None]) -> None:
    _hook(ItemEncoder, "encode", at, "encode", strike)
    _hook(installation.store, "upsert", at, "upsert", strike)
    _hook(RequestLedger, "record", at, "ledger", strike)
    _hook(OutcomeProducer, "send", at, "transaction", strike)
    _hook(TransactionalProducer, "_send_offsets", at, "commit", strike)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    specification = json.loads(sys.argv[1])
    installation = install(
        Path(specification["home"]),
        specification["bootstrap_servers"],
        specification["topic_prefix"],
        kafka=specification["kafka"],
    )
    if "kill_at" in specification:
        _hook_all(installation, tuple(specification["kill_at"]), _kill)
    if "pause_at" in specification:

        def pause() -> None:
            Path(specification["home"], "paused").touch()
            time.sleep(specification["pause_seconds"])

        _hook_all(installation, tuple(specification["pause_at"]), pause)
    try:
        with installation.open_drain(run_id=f"child-{os.getpid()}") as stream:
            if "kill_after" in specification:
                threading.Timer(specification["kill_after"], _kill).start()
            for _ in written(DirectWriter(installation.settings, installation.store), stream):
                pass
    except FencedError:
        os._exit(FENCED)
    sys.stdout.flush()
    os._exit(0)  # not waiting for a timer


if __name__ == "__main__":
    main()
