"""A worker whose runs stop after a batch, for tests that end them there: `python -m tests.runs.workers.pausing_worker`

Its arguments are those of `vectorize`. The runs go on once there is the file that the variable `GO_ON` names.
"""

import os
import time
from pathlib import Path
from typing import Any

from celery import signals

from vectorize_pipelines.cli import main

GO_ON = "TEST_GO_ON"


def pause(**_: Any) -> None:
    """Have this process wait after each batch. Called in those of the pool, which import more than their parent."""
    from vectorize_pipelines.pipeline import writing
    from vectorize_pipelines.pipeline.batch import EmbeddingBatch

    write, file = writing.write_batch, Path(os.environ[GO_ON])

    def write_and_wait(writer: writing.BatchWriter, batch: EmbeddingBatch) -> None:
        write(writer, batch)
        while not file.exists():
            time.sleep(0.05)

    writing.write_batch = write_and_wait


if __name__ == "__main__":
    signals.worker_process_init.connect(pause, weak=False)
    main()
