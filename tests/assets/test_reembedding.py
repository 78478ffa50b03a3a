"""The asset `reembedding`, its checks and the job that drops old generations, on a real instance."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.instances import installed_instance
from tests.small_corpus import DAYS, TODAY
from vectorize_pipelines.pipeline.generations import lifecycle as switching
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, load_settings
from vectorize_pipelines.state.generations import Generations, State
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.filters.expressions import Equal

KEY = dg.AssetKey("reembedding")


@pytest.fixture
def instance(corpus: Path, monkeypatch: pytest.MonkeyPatch, shared_parsers: None) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("VECTORIZE_REEMBEDDING__KEEP_DAYS", "0")
    with installed_instance(monkeypatch) as instance:
        yield instance


def run(instance: dg.DagsterInstance, job: str, day: str | None = TODAY, **config: Any) -> dg.ExecuteInProcessResult:
    from vectorize_pipelines.definitions import defs

    asset = {"embed_corpus": "corpus_embeddings", "reembed_collection": "reembedding"}.get(job)
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance,
        partition_key=day,
        run_config={"ops": {asset: {"config": config}}} if asset else None,
        raise_on_error=False,
    )


def checks(result: dg.ExecuteInProcessResult) -> dict[str, tuple[bool, dict[str, Any]]]:
    return {
        each.check_name: (each.passed, {name: value.value for name, value in each.metadata.items()})
        for each in result.get_asset_check_evaluations()
    }


@pytest.mark.slow
def test_day_by_day_then_all_then_dropped_by_the_job(instance: dg.DagsterInstance) -> None:
    assert run(instance, "embed_corpus", mode="drain").success
    config = {"collection": "corpus", "model": DEFAULT_TEXT_MODEL, "dimension": 64}
    one = run(instance, "reembed_collection", DAYS[0].isoformat(), **config)
    assert one.success
    assert {name: passed for name, (passed, _) in checks(one).items()} == {
        "same_rows": True,
        "canary_recall_of_new": True,
        "neighbour_overlap_at_10": True,
    }
    settings = load_settings()
    store = open_store(settings.store, settings.home)
    new = "corpus__all-minilm-l6-v2-64"
    assert store.count(new) == store.count("corpus", Equal("partition", DAYS[0].isoformat())) == 1
    (record,) = instance.fetch_materializations(dg.AssetRecordsFilter(asset_key=KEY), limit=1).records
    assert record.partition_key == DAYS[0].isoformat()
    materialization = record.asset_materialization
    assert materialization is not None
    assert materialization.metadata["physical_collection"].value == new
    assert materialization.metadata["encoded"].value == 1

    rest = run(instance, "reembed_collection", collection="corpus", mode="drain")
    assert rest.success
    assert checks(rest)["same_rows"][1]["rows_new"] == 3
    assert checks(rest)["neighbour_overlap_at_10"][1]["sampled"] == 0, "all three rows are near each other"
    assert instance.get_materialized_partitions(KEY) == {TODAY, *(day.isoformat() for day in DAYS)}

    with closing(Generations.open(settings)) as generations:
        switching.switch(settings, store, generations, "corpus")
        assert run(instance, "drop_old_generations", None).success
        assert [each.state for each in generations.of("corpus")] == [State.DROPPED, State.LIVE]
    assert [each.physical for each in store.collections()] == [new]
    # The checks of the corpus go by the collection's new model now.
    after = run(instance, "embed_corpus", mode="drain", reconcile=True)
    assert after.success
    assert all(passed for passed, _ in checks(after).values())


@pytest.mark.slow
def test_checks_alone_look_at_every_collection_that_is_being_embedded_again(instance: dg.DagsterInstance) -> None:
    from vectorize_pipelines.definitions import defs

    for name in ("corpus", "other"):
        assert run(instance, "embed_corpus", mode="drain", collection=name).success
        config: dict[str, Any] = {"collection": name, "model": DEFAULT_TEXT_MODEL, "dimension": 64, "mode": "drain"}
        assert run(instance, "reembed_collection", **config).success
    settings = load_settings()
    open_store(settings.store, settings.home).delete("other__all-minilm-l6-v2-64", Equal("item_index", 0))
    job = dg.define_asset_job("checks", selection=dg.AssetSelection.checks_for_assets("reembedding"))
    alone = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("checks")
    found = checks(alone.execute_in_process(instance=instance, raise_on_error=False))
    passed, figures = found["same_rows"]
    assert not passed
    assert (figures["corpus/missing"], figures["other/missing"]) == (0, 3)
    overlaps = found["neighbour_overlap_at_10"][1]
    assert {name: number for name, number in overlaps.items() if "/sampled" in name} == {
        "corpus/sampled": 0,
        "other/sampled": 0,
    }
    assert not [name for name in overlaps if name.endswith("/overlap")], "all three rows are near each other"
    assert found["canary_recall_of_new"][0]


def test_a_collection_that_is_not_there_fails_and_says_so(instance: dg.DagsterInstance) -> None:
    result = run(instance, "reembed_collection", collection="nothing", model=DEFAULT_TEXT_MODEL)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure][:1]
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert "nothing" in (data.description or "")
