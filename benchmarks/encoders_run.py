"""One measurement of this project's encoder or pipeline, in this process; prints what it took as JSON.

Called by `encoders.py` and `flat.py`, each time in a process of its own, with VECTORIZE_HOME set:
python -m benchmarks.encoders_run NAME SOURCE VECTORS

ceiling   SOURCE {"warm_up": texts, "passages": texts} in JSON: bare forward passes of what was tokenized, sorted, cut
          into batches and padded beforehand, in the encoder's own graph
encode    the same SOURCE: `encode` of texts
pipeline  SOURCE a folder with the folders `warm_up` and `passages` of documents: all of them into LanceDB
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import peak_mib
from vectorize_pipelines.encoders import default_cache_directory, lease_encoder, load_encoder
from vectorize_pipelines.encoders.base import Vectors
from vectorize_pipelines.encoders.batching import TokenBatch, TokenBudget, token_batches
from vectorize_pipelines.encoders.engines.base import LoadRequest
from vectorize_pipelines.encoders.engines.openvino.export import export_tokenizer, exported
from vectorize_pipelines.encoders.engines.openvino.graph import BATCH_TOKENS, COUNT_STEP, padded_width
from vectorize_pipelines.encoders.engines.openvino_runtime import compiled
from vectorize_pipelines.encoders.hardware.machine import physical_cores
from vectorize_pipelines.pipeline.files.context import FolderRequest
from vectorize_pipelines.pipeline.files.documents import DocumentReader, corpus_source
from vectorize_pipelines.pipeline.files.folder import open_folder
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, load_settings
from vectorize_pipelines.state.generations import EmbeddingConfig
from vectorize_pipelines.stores import open_store


@dataclass(frozen=True)
class Outcome:
    """What a measurement took. `vectors` are in the order of the passages."""

    seconds: float
    peak_mib: float
    vectors: Vectors


def ceiling(source: Path) -> Outcome:
    """One stream a core, each fed by a thread that has nothing else to do."""
    request = LoadRequest(DEFAULT_TEXT_MODEL, "cpu", default_cache_directory())
    export = exported(request)
    tokenizer = export_tokenizer(request, export.folder.directory)
    streams = physical_cores()
    graph = compiled(export.folder.directory / "model.xml", export.precision, streams)

    def prepared(texts: Sequence[str]) -> list[tuple[TokenBatch, list[Any]]]:
        batches = token_batches(
            texts, lambda window: tokenizer.ids(window, ""), TokenBudget(BATCH_TOKENS), count_step=COUNT_STEP
        )
        return [(batch, list(batch.padded(export.padding, width(batch)))) for batch in batches]

    def width(batch: TokenBatch) -> int:
        return padded_width(batch.longest, export.precision, request.spec.max_length)

    def forward(batches: Iterable[tuple[TokenBatch, list[Any]]], vectors: Vectors) -> None:
        remaining = iter(batches)  # of a list, so that `next` is safe in several threads

        def work(_: int) -> None:
            inference = graph.create_infer_request()
            for batch, inputs in remaining:
                inference.infer(inputs, share_inputs=True)
                vectors[batch.positions] = inference.get_output_tensor(0).data

        with ThreadPoolExecutor(streams) as pool:
            list(pool.map(work, range(streams)))

    warm_up, passages = _texts(source)
    vectors = np.empty((len(passages), request.spec.dimension), dtype=np.float32)
    forward(prepared(warm_up), vectors)
    batches = prepared(passages)
    started = time.perf_counter()
    forward(batches, vectors)
    return Outcome(time.perf_counter() - started, peak_mib(), vectors)


def encode(source: Path) -> Outcome:
    """What users of the encoder alone call."""
    warm_up, passages = _texts(source)
    encoder = load_encoder(DEFAULT_TEXT_MODEL, device="cpu")
    encoder.encode(warm_up)
    started = time.perf_counter()
    vectors = encoder.encode(passages)
    return Outcome(time.perf_counter() - started, peak_mib(), vectors)


def pipeline(source: Path) -> Outcome:
    """What `vectorize ingest` runs, without Dagster: from opening the source to the last row written."""
    settings = load_settings()
    store = open_store(settings.store, settings.home)

    def ingest(folder: Path) -> None:
        today = datetime.now(UTC).date()
        request = FolderRequest(
            collection=folder.name, model=DEFAULT_TEXT_MODEL, mode="drain", window=(today, today), run_id="bench"
        )
        files, reader = (
            corpus_source(settings, str(folder)),
            DocumentReader(settings, EmbeddingConfig(DEFAULT_TEXT_MODEL)),
        )
        with open_folder(settings, request, files, reader, store, lease_encoder) as stream:
            for _ in written(DirectWriter(settings, store), stream):
                pass

    ingest(source / "warm_up")
    started = time.perf_counter()
    ingest(source / "passages")
    seconds, peak = time.perf_counter() - started, peak_mib()
    columns = ["source_id", "item_index", "vector"]
    rows = [row for batch in store.scan("passages", columns) for row in batch.to_pylist()]
    rows.sort(key=lambda row: (str(row["source_id"]), int(row["item_index"])))
    return Outcome(seconds, peak, np.asarray([row["vector"] for row in rows], dtype=np.float32))


MEASUREMENTS = {"ceiling": ceiling, "encode": encode, "pipeline": pipeline}


def _texts(source: Path) -> tuple[list[str], list[str]]:
    texts = json.loads(source.read_text(encoding="utf-8"))
    return texts["warm_up"], texts["passages"]


def main() -> None:
    """Takes one measurement, saves its vectors and prints its figures."""
    name, source, vectors = sys.argv[1:]
    outcome = MEASUREMENTS[name](Path(source))
    np.save(vectors, outcome.vectors)
    figures = {"seconds": outcome.seconds, "peak_mib": outcome.peak_mib, "texts": len(outcome.vectors)}
    print(json.dumps({**figures, "vectors_mib": outcome.vectors.nbytes / 2**20}))


if __name__ == "__main__":
    main()
