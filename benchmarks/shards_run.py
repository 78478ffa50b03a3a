"""One drain run of a shard of a folder, in this process; prints what it did as JSON.

Called by `shards.py`, each time in a process of its own, as several beside each other:

    python -m benchmarks.shards_run FOLDER HOME sleeping|ENGINE SHARD

It loads what it needs and says `ready`, then begins with the first line that comes in.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks.null_encoder import NullEncoder
from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.encoders import lease_encoder
from vectorize_pipelines.encoders.base import Encoder, Purpose, Vectors
from vectorize_pipelines.pipeline.files.context import FolderRequest
from vectorize_pipelines.pipeline.files.documents import DocumentReader, corpus_source
from vectorize_pipelines.pipeline.files.folder import open_folder
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, load_settings
from vectorize_pipelines.state.generations import EmbeddingConfig
from vectorize_pipelines.stores import open_store

SECONDS_PER_TEXT = 0.01


class SleepingEncoder(NullEncoder):
    """Takes its time with each text and no processor, as one that asks a GPU or another machine."""

    def encode(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Vectors:
        time.sleep(len(items) * SECONDS_PER_TEXT)
        return super().encode(items, purpose)


@contextmanager
def _lease_sleeping_encoder(model: str) -> Iterator[Encoder]:
    yield SleepingEncoder()


def main() -> None:
    """Do the run once it is told to, and print what it did."""
    folder, home, engine, shard = sys.argv[1:]
    settings = load_settings({"VECTORIZE_HOME": home, "VECTORIZE_DOCUMENTS__OVERLAP_TOKENS": "0"})
    store = open_store(settings.store, settings.home)
    today = datetime.now(UTC).date()
    request = FolderRequest("bench", DEFAULT_TEXT_MODEL, "drain", (today, today), "bench", shard=Shard.parse(shard))
    lease = _lease_sleeping_encoder if engine == "sleeping" else partial(lease_encoder, engine=engine)
    with lease(DEFAULT_TEXT_MODEL) as encoder:
        encoder.encode(["warm"])
    print("ready", flush=True)
    sys.stdin.readline()
    source, reader = corpus_source(settings, folder), DocumentReader(settings, EmbeddingConfig(DEFAULT_TEXT_MODEL))
    with open_folder(settings, request, source, reader, store, lease) as stream:
        for _ in written(DirectWriter(settings, store), stream):
            pass
        stream.reported()
    print(json.dumps({"documents": stream.totals.sum().documents, "ended": time.monotonic()}))


if __name__ == "__main__":
    main()
