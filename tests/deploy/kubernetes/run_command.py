"""What stands before the command of a run's pod, for tests that end it there; the command is `dagster`.

    python -m tests.deploy.kubernetes.run_command pause FILE dagster …

waits after each batch that is written until FILE is there, and says by a file `paused-POD` beside it that it waits.
`fill BYTES` takes so many bytes for each item that a batch may have, when one is written.
"""

import socket
import sys
import time
from pathlib import Path
from typing import Any


def _pause(file: Path) -> None:
    from vectorize_pipelines.pipeline import writing
    from vectorize_pipelines.pipeline.batch import EmbeddingBatch

    write = writing.write_batch

    def write_and_wait(writer: writing.BatchWriter, batch: EmbeddingBatch) -> None:
        write(writer, batch)
        if not file.exists():
            file.with_name(f"paused-{socket.gethostname()}").touch()
        while not file.exists():
            time.sleep(0.05)

    writing.write_batch = write_and_wait


def _fill(item_bytes: int) -> None:
    """Take memory when the first batch is written, as a model with large batches does."""
    from vectorize_pipelines.pipeline import writing
    from vectorize_pipelines.pipeline.batch import EmbeddingBatch
    from vectorize_pipelines.settings import load_settings

    write = writing.write_batch

    def fill_and_write(writer: writing.BatchWriter, batch: EmbeddingBatch) -> None:
        filled = b"x" * (load_settings().pipeline.batch_items * item_bytes)
        time.sleep(2)  # the node looks at the memory now and then
        write(writer, batch)
        del filled

    writing.write_batch = fill_and_write


def main() -> None:
    from dagster._cli import main as dagster_main

    dagster: Any = dagster_main

    how, value, _, *arguments = sys.argv[1:]
    if how == "pause":
        _pause(Path(value))
    else:
        _fill(int(value))
    sys.argv = ["dagster", *arguments]
    dagster()


if __name__ == "__main__":
    main()
