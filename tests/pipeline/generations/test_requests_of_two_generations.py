"""A run of requests that began before a switch meets a store that goes away between the two generations."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline.generations.two_models import COLLECTION, NEW, NOON, OLD, Writers, installed, spec_of, vector_of
from vectorize_pipelines.core.items import Item, Modality, content_hash
from vectorize_pipelines.core.records import make_records, record_id
from vectorize_pipelines.errors import StoreUnavailableError
from vectorize_pipelines.messaging.messages import Origin, Request, TaskType
from vectorize_pipelines.pipeline.batch import EmbeddingBatch
from vectorize_pipelines.pipeline.generations import lifecycle as switching
from vectorize_pipelines.pipeline.outage import StoreRetry
from vectorize_pipelines.pipeline.requests.pending import PendingRequest
from vectorize_pipelines.pipeline.requests.writes import KnownSources, RequestWrite
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.pipeline.writing import write_batch
from vectorize_pipelines.state.versions import SourceVersions
from vectorize_pipelines.stores.filters.expressions import Equal

DAY = NOON.date().isoformat()


@pytest.fixture
def writers(tmp_path: Path) -> Writers:
    return installed(tmp_path / "installation")


def batch_of(writers: Writers, versions: SourceVersions, texts: Sequence[str], offset: int) -> EmbeddingBatch:
    """What a run by the old model makes of a request for some texts."""
    origin = Origin("topic", 0, offset, round(NOON.timestamp() * 1000))
    request = Request("task", TaskType.BATCH, (), None, COLLECTION, 0, None, {}, None, origin)
    items = [Item("task", n, Modality.TEXT, text, None, content_hash(text), NOON) for n, text in enumerate(texts)]
    models = [spec_of(OLD).fingerprint] * len(items)
    pending = PendingRequest(request, None, DAY, NOON, NOON, items=items, models=models)
    records = make_records(
        [record_id(COLLECTION, "task", n) for n in range(len(items))],
        items,
        [DAY] * len(items),
        np.stack([vector_of(text, OLD) for text in texts]),
        [NOON] * len(items),
        models=models,
        run_id="run",
    )
    sources = KnownSources(writers.store, versions)
    write = RequestWrite(sources, [pending], Totals(), lambda _: False)
    return replace(writers.batch({}), announce=write.announce, records=records)


def indexes(writers: Writers, dimension: int) -> list[tuple[int, str]]:
    of_task = Equal("source_id", "task")
    table = writers.store.fetch(writers.physical(dimension), of_task, ("item_index", "text"))
    return sorted((row["item_index"], row["text"]) for row in table.to_pylist())


@pytest.mark.parametrize("method", ["upsert", "delete"])
def test_what_the_old_generation_has_already_reaches_the_live_one(
    writers: Writers, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    writers.write({"other": "text"})
    writers.reembed()
    with (
        closing(writers.generations()) as generations,
        closing(SourceVersions.open(writers.settings)) as versions,
        closing(writers.mirrors()) as mirrors,
    ):
        switching.switch(writers.settings, writers.store, generations, COLLECTION)
        write_batch(mirrors, batch_of(writers, versions, ["one", "two", "three"], 1))
        really, failures = getattr(writers.store, method), [StoreUnavailableError("the store is away")]

        def away_once(name: str, what: Any) -> Any:
            if name == writers.physical(NEW) and failures:
                raise failures.pop()
            return really(name, what)

        monkeypatch.setattr(writers.store, method, away_once)
        batch = batch_of(writers, versions, ["one", "another"], 2)
        StoreRetry(60, first_pause=0.001).call(partial(write_batch, mirrors, batch))
    assert not failures, "the store was never away"
    assert indexes(writers, NEW) == indexes(writers, OLD) == [(0, "one"), (1, "another")]
