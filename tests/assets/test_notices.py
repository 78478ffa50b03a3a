"""What is missing of a day's documents, in the metadata that Dagster shows and plots."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.assets.materializing import run
from tests.documents import noticing
from tests.instances import installed_instance
from tests.small_corpus import DAYS, write_document
from vectorize_pipelines.pipeline.files import documents

KEY = dg.AssetKey("corpus_embeddings")


@pytest.fixture
def instance(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    noticing.use(monkeypatch, documents)
    with installed_instance(monkeypatch) as instance:
        yield instance


def test_a_day_has_figures_and_a_table_of_what_is_missing(instance: dg.DagsterInstance, corpus: Path) -> None:
    write_document(corpus, "partly.md", "OMITTED page 3 has no text\nASSUMED it is Danish\n\nA pilot boards at dawn.")
    day = DAYS[0].isoformat()
    for encoded in (2, 0):
        assert run(instance, first=day, last=day).success, "what is missing fails no run"
        (record,) = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=KEY, asset_partitions=[day]), limit=1
        ).records
        assert record.asset_materialization is not None
        found: dict[str, Any] = {name: value.value for name, value in record.asset_materialization.metadata.items()}
        assert (found["encoded"], found["incomplete"], found["assumed"], found["failed"]) == (encoded, 1, 1, 0)
        rows = [dict(each.data) for each in found["notices"].records]
        assert [(Path(each["source"]).name, each["kind"], each["what"], each["remedy"]) for each in rows] == [
            ("partly.md", "omitted", "page 3 has no text", noticing.REMEDY),
            ("partly.md", "assumed", "it is Danish", noticing.REMEDY),
        ]


def test_a_request_of_its_own_run_says_what_its_model_did_not_take(instance: dg.DagsterInstance) -> None:
    from vectorize_pipelines.definitions import defs

    request = {"task_id": "long", "task_type": "text_vectorization", "data": "a boat at sea " * 100}
    result = defs.resolve_job_def("embed_request").execute_in_process(
        instance=instance, run_config={"ops": {"request": {"config": request}}}
    )
    assert result.success
    (event,) = (event for event in result.all_events if event.is_step_materialization)
    found: dict[str, Any] = {
        name: value.value for name, value in event.step_materialization_data.materialization.metadata.items()
    }
    assert (found["incomplete"], found["tokens"], found["truncated"]) == (1, 256, 400 + 2 - 256)
    (row,) = found["notices"].records
    assert row.data["source"] == "long"
    assert row.data["what"].startswith("146 of 402 tokens")
