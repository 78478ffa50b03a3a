"""One drain run of a folder with the null encoder or a real engine, in this process; prints what it took as JSON.

Called by `run.py`, each time in a process of its own:

    python -m benchmarks.pipeline_run FOLDER HOME null|ENGINE DATABASE

DATABASE is the address of a PostgreSQL in which the state lies, or empty for SQLite files.
"""

import json
import sys
import time
from datetime import UTC, datetime
from functools import partial

from benchmarks.figures import peak_mib
from benchmarks.null_encoder import lease_null_encoder
from vectorize_pipelines.encoders import lease_encoder
from vectorize_pipelines.pipeline.files.context import FolderRequest
from vectorize_pipelines.pipeline.files.documents import DocumentReader, corpus_source
from vectorize_pipelines.pipeline.files.folder import open_folder
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, load_settings
from vectorize_pipelines.state.generations import EmbeddingConfig
from vectorize_pipelines.stores import open_store


def main() -> None:
    """Does the run and prints its figures."""
    folder, home, engine, database = sys.argv[1:]
    environment = {"VECTORIZE_HOME": home, "VECTORIZE_DOCUMENTS__OVERLAP_TOKENS": "0"}
    if database:
        environment["VECTORIZE_LEDGER__URL"] = database
    settings = load_settings(environment)
    store = open_store(settings.store, settings.home)
    today = datetime.now(UTC).date()
    request = FolderRequest(
        collection="bench", model=DEFAULT_TEXT_MODEL, mode="drain", window=(today, today), run_id="bench"
    )
    real = engine != "null"
    lease = partial(lease_encoder, engine=engine) if real else lease_null_encoder
    if real:
        with lease(DEFAULT_TEXT_MODEL) as encoder:
            encoder.encode(["warm"])
    started = time.perf_counter()
    texts: list[str] = []
    source, reader = corpus_source(settings, folder), DocumentReader(settings, EmbeddingConfig(DEFAULT_TEXT_MODEL))
    with open_folder(settings, request, source, reader, store, lease) as stream:
        for batch in written(DirectWriter(settings, store), stream):
            if real:
                texts.extend(batch.records["text"].to_pylist())
    seconds = time.perf_counter() - started
    totals = stream.totals.sum()
    peak = peak_mib()
    outcome: dict[str, float | str] = {
        "seconds": seconds,
        "chunks": totals.chunks,
        "documents": totals.documents,
        "peak_mib": peak,
    }
    if real:
        # The same texts through the bare encoder, in the same process, in the order in which they were read.
        with lease(DEFAULT_TEXT_MODEL) as encoder:
            started = time.perf_counter()
            encoder.encode(texts)
            outcome["bare_seconds"] = time.perf_counter() - started
        outcome["engine"] = encoder.choice.engine
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
