"""A `vectorize worker` whose model is a hash: `python -m tests.machines.worker`, with the arguments of `vectorize`.

The variable `LEASE_SECONDS` has its leases lapse after so long. Started on each machine by `site.py`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from celery import signals

from tests.pipeline.requests.installation import HashEncoder
from vectorize_pipelines.cli import main
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.settings import Settings

LEASE_SECONDS = "TEST_LEASE_SECONDS"


def prepare(**_: Any) -> None:
    """Replace the model. Called in the processes of the pool, which import more than their parent."""
    from vectorize_pipelines.resources import encoder
    from vectorize_pipelines.state import leases

    @contextmanager
    def lease_hash(settings: Settings, model: str, dimension: int | None = None) -> Iterator[Encoder]:
        yield HashEncoder(describe_model(model, dimension=dimension))

    patch.object(encoder, "lease_configured", lease_hash).start()
    if LEASE_SECONDS in os.environ:
        leases.LEASE_SECONDS = float(os.environ[LEASE_SECONDS])


if __name__ == "__main__":
    signals.worker_process_init.connect(prepare, weak=False)
    main()
