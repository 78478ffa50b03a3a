"""The assets, their checks and the IO manager, materialized in this process on a real instance."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.assets.materializing import run
from tests.instances import installed_instance
from tests.small_corpus import DAYS, TODAY, write_document
from vectorize_pipelines.core.records import record_schema
from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.pipeline import writing
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.filters.expressions import Equal

KEY = dg.AssetKey("corpus_embeddings")


@pytest.fixture
def instance(corpus: Path, monkeypatch: pytest.MonkeyPatch, shared_parsers: None) -> Iterator[dg.DagsterInstance]:
    with installed_instance(monkeypatch) as instance:
        yield instance


def metadata(instance: dg.DagsterInstance, day: str, key: dg.AssetKey = KEY) -> dict[str, Any]:
    """What the UI shows of a day: the metadata of its latest materialization."""
    (record,) = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[day]), limit=1
    ).records
    materialization = record.asset_materialization
    assert materialization is not None
    return {name: value.value for name, value in materialization.metadata.items()}


@pytest.mark.slow
def test_a_range_is_one_run_with_figures_for_each_day(instance: dg.DagsterInstance) -> None:
    first, second, third = (day.isoformat() for day in DAYS)
    result = run(instance, first=first, last=third)
    assert result.success
    figures = {day: metadata(instance, day) for day in (first, second, third)}
    assert [figures[day]["documents"] for day in (first, second, third)] == [1, 1, 2]
    assert [figures[day]["encoded"] for day in (first, second, third)] == [1, 1, 1]
    assert [figures[day]["failed"] for day in (first, second, third)] == [0, 0, 1]
    assert figures[third]["errors/CorruptDocumentError"] == 1
    assert figures[first]["tokens"] > 5
    assert figures[first]["texts_per_second"] > 0
    assert "paraffin" in figures[first]["preview"].records[0].data["text"]
    assert figures[third]["failures"].records[0].data["source"].endswith("bad.pdf")
    assert Path(figures[first]["location"]).exists()
    again = run(instance, first=first, last=third)
    assert again.success
    assert [metadata(instance, day)["encoded"] for day in (first, second, third)] == [0, 0, 0]
    assert [metadata(instance, day)["skipped"] for day in (first, second, third)] == [1, 1, 1]


@pytest.mark.slow
def test_a_drain_run_materializes_every_day_that_it_touched(instance: dg.DagsterInstance, corpus: Path) -> None:
    assert run(instance, mode="drain").success
    days = instance.get_materialized_partitions(KEY)
    assert days == {TODAY, *(day.isoformat() for day in DAYS)}
    (corpus / "boat.txt").unlink()
    assert run(instance, mode="drain").success
    assert metadata(instance, DAYS[1].isoformat())["deleted"] == 1
    assert metadata(instance, TODAY)["encoded"] == 0


@pytest.mark.slow
def test_a_downstream_asset_gets_its_days(instance: dg.DagsterInstance) -> None:
    first, last = DAYS[0].isoformat(), DAYS[2].isoformat()
    run(instance, first=first, last=last)
    assert run(instance, "report_corpus", first, last).success
    key = dg.AssetKey("corpus_report")
    assert [metadata(instance, day.isoformat(), key)["documents"] for day in DAYS] == [1, 1, 1]
    assert metadata(instance, last, key)["plot"].startswith("![")


def test_inputs_come_as_dataframe_or_table(instance: dg.DagsterInstance) -> None:
    from vectorize_pipelines.assets.files import file_assets
    from vectorize_pipelines.definitions import defs
    from vectorize_pipelines.partitions import daily_partitions

    daily = daily_partitions(load_settings())
    first, last = DAYS[0].isoformat(), DAYS[1].isoformat()
    run(instance, first=first, last=last)
    seen: dict[str, Any] = {}
    policy = dg.BackfillPolicy.single_run()

    @dg.asset(partitions_def=daily, backfill_policy=policy, ins={"rows": dg.AssetIn("corpus_embeddings")})
    def as_frame(rows: pd.DataFrame) -> None:
        seen["frame"] = rows

    @dg.asset(partitions_def=daily, backfill_policy=policy, ins={"rows": dg.AssetIn("corpus_embeddings")})
    def as_table(rows: pa.Table) -> None:
        seen["table"] = rows

    result = dg.materialize(
        [*file_assets(load_settings()), as_frame, as_table],
        selection=[as_frame, as_table],
        resources=defs.resources,
        instance=instance,
        tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
    )
    assert result.success
    assert seen["table"].schema.names == record_schema(384).names
    assert set(seen["frame"]["partition"]) == {first, last}
    assert seen["frame"]["metadata"].map(type).eq(dict).all()
    assert np.isclose(np.linalg.norm(seen["frame"]["vector"].iloc[0]), 1, atol=1e-3)


@pytest.mark.slow
def test_a_vector_that_is_not_its_texts_own_fails_its_check(instance: dg.DagsterInstance) -> None:
    run(instance, mode="drain")
    store = open_store(load_settings().store, load_settings().home)
    _spoil(store, np.eye(384, dtype=np.float32)[0])
    result = run(instance, first=DAYS[0].isoformat())
    failed = {evaluation.check_name for evaluation in result.get_asset_check_evaluations() if not evaluation.passed}
    assert "canary_recall" in failed


def _spoil(store: VectorStore, vector: np.ndarray[Any, Any]) -> None:
    """Gives the one row of the first day another vector, behind the manifest's back."""
    rows = store.fetch("corpus", Equal("partition", DAYS[0].isoformat()), record_schema(384).names)
    field = rows.schema.field("vector")
    spoilt = pa.FixedSizeListArray.from_arrays(pa.array(vector), type=field.type)
    store.upsert("corpus", rows.set_column(rows.schema.get_field_index("vector"), field, spoilt))


@pytest.mark.slow
def test_a_vector_that_is_not_unit_fails_its_check_and_blocks_what_is_downstream(instance: dg.DagsterInstance) -> None:
    from vectorize_pipelines.definitions import defs

    run(instance, mode="drain")
    store = open_store(load_settings().store, load_settings().home)
    _spoil(store, np.full(384, 7, dtype=np.float32))
    whole = dg.Definitions(
        assets=defs.assets,
        asset_checks=defs.asset_checks,
        resources=defs.resources,
        executor=defs.executor,
        jobs=[dg.define_asset_job("both", dg.AssetSelection.assets("corpus_embeddings", "corpus_report"))],
    )
    day = DAYS[0].isoformat()
    result = whole.resolve_job_def("both").execute_in_process(
        instance=instance, partition_key=day, raise_on_error=False
    )
    assert not result.success
    assert "sound_vectors" in {each.check_name for each in result.get_asset_check_evaluations() if not each.passed}
    materialized = {event.asset_key for event in result.get_asset_materialization_events()}
    assert materialized == {KEY}


@pytest.mark.slow
def test_a_day_is_not_held_responsible_for_another(instance: dg.DagsterInstance) -> None:
    from vectorize_pipelines.definitions import defs

    run(instance, mode="drain")
    store = open_store(load_settings().store, load_settings().home)
    store.delete("corpus", Equal("partition", DAYS[0].isoformat()))
    assert run(instance, first=DAYS[1].isoformat()).success

    check = dg.AssetCheckKey(KEY, "rows_match_manifest")
    alone = defs.resolve_implicit_global_asset_job_def().get_subset(asset_check_selection={check})
    result = alone.execute_in_process(instance=instance, raise_on_error=False)
    (evaluation,) = result.get_asset_check_evaluations()
    assert not evaluation.passed
    assert "vectorize ingest PATH --reconcile" in (evaluation.description or "")

    repaired = run(instance, first=DAYS[0].isoformat())
    assert repaired.success
    assert store.count("corpus", Equal("partition", DAYS[0].isoformat())) == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"collection": "No Such Name"}, "must match"),
        ({"path": "/nowhere/at/all"}, "No such file"),
        ({"model": "no/such-model"}, "no/such-model"),
    ],
)
def test_what_the_user_has_to_mend_fails_at_once_and_says_so(
    instance: dg.DagsterInstance, config: dict[str, str], said: str
) -> None:
    result = run(instance, mode="drain", **config)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert said in (data.description or "")
    assert not [event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]


@pytest.mark.slow
def test_a_document_changed_during_the_day_keeps_one_row_a_chunk(instance: dg.DagsterInstance, corpus: Path) -> None:
    run(instance, mode="drain")
    write_document(corpus, "lamp.md", "# The lamp\n\nThe lamp burns electricity now.\n", 1)
    run(instance, mode="drain")
    store = open_store(load_settings().store, load_settings().home)
    rows = store.fetch("corpus", Equal("source_id", str(corpus / "lamp.md")), ("text", "partition")).to_pylist()
    assert [(row["partition"], "electricity" in row["text"]) for row in rows] == [(DAYS[1].isoformat(), True)]


@pytest.mark.slow
def test_a_store_that_fails_once_is_tried_again_and_the_figures_are_those_of_the_whole_run(
    instance: dg.DagsterInstance, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(200):
        write_document(corpus, f"{n}.md", f"Note {n} tells of storm number {n}.", n % 3)
    really = writing.write_batch
    written: list[int] = []

    def failing_once(writer: Any, batch: Any) -> None:
        written.append(batch.records.num_rows)
        if len(written) == 2:
            raise StoreError("the store is away")
        really(writer, batch)

    monkeypatch.setattr(writing, "write_batch", failing_once)
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda *_: 0)
    result = run(instance, mode="drain")
    assert result.success
    assert [event for event in result.all_events if event.event_type_value == "STEP_RESTARTED"]
    figures = [metadata(instance, day.isoformat()) for day in DAYS]
    # What the failed batch had encoded is in the cache: a store that is away never has anything encoded twice.
    assert sum(day["encoded"] for day in figures) == written[0]
    assert sum(day["cache_hits"] for day in figures) == 203 - written[0] == written[1]
    store = open_store(load_settings().store, load_settings().home)
    assert store.count("corpus") == 203
