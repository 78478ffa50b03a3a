"""Collections are maintained, and their indexes measured, by jobs that a schedule launches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.small_corpus import TODAY
from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.conformance.records import many, spec
from vectorize_pipelines.stores.lancedb.store import LanceDBStore

KEY = dg.AssetKey("maintained_collections")


@pytest.fixture
def instance(corpus: Path, shared_parsers: None) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def run(instance: dg.DagsterInstance, job: str, **arguments: Any) -> dg.ExecuteInProcessResult:
    from vectorize_pipelines.definitions import defs

    return defs.resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=False, **arguments)


def write(name: str, rows: int, times: int) -> None:
    store = open_store(load_settings().store, load_settings().home)
    store.ensure_collection(name, spec())
    for number in range(times):
        store.upsert(name, many(rows, first=rows * number))


def test_every_collection_is_maintained_with_its_figures(instance: dg.DagsterInstance) -> None:
    write("first", 3, 70)
    write("second", 5, 1)
    assert run(instance, "maintain_collections").success
    (record,) = instance.fetch_materializations(KEY, limit=1).records
    assert record.asset_materialization is not None
    figures = {name: value.value for name, value in record.asset_materialization.metadata.items()}
    assert (figures["collections"], figures["first/rows"], figures["second/rows"]) == (2, 210, 5)
    assert (figures["first/fragments_before"], figures["first/fragments"], figures["first/compacted"]) == (70, 1, 1)
    assert figures["second/compacted"] == 0


def test_a_collection_that_cannot_be_maintained_does_not_keep_the_others_from_it(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("first", 3, 1)
    write("second", 5, 1)
    really = LanceDBStore.maintain

    def maintain(store: LanceDBStore, name: str) -> Any:
        if name.startswith("first"):
            raise StoreError("it is damaged")
        return really(store, name)

    monkeypatch.setattr(LanceDBStore, "maintain", maintain)
    result = run(instance, "maintain_collections")
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert data.description == "first: it is damaged"
    assert data.metadata["second/rows"].value == 5


def test_an_index_is_measured_where_there_is_one(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluation() -> dg.AssetCheckEvaluation:
        result = run(instance, "check_indexes")
        assert result.success
        (found,) = result.get_asset_check_evaluations()
        assert found.check_name == "index_recall"
        return found

    missing = evaluation()
    assert missing.passed
    assert missing.metadata["collections"].value == missing.metadata["indexed"].value == 0

    config = {"ops": {"corpus_embeddings": {"config": {"mode": "drain"}}}}
    embedded = run(instance, "embed_corpus", run_config=config, partition_key=TODAY)
    (of_run,) = [one for one in embedded.get_asset_check_evaluations() if one.check_name == "index_recall"]
    assert of_run.passed
    assert "every search compares all vectors" in (of_run.description or "")
    assert of_run.metadata["indexed"].value == 0

    monkeypatch.setattr(LanceDBStore, "searches_exactly", lambda *_: False)
    write("unnamed", 5, 1)
    measured = evaluation()
    assert measured.passed
    assert measured.metadata["collections"].value == measured.metadata["indexed"].value == 2
    for name, rows in (("corpus", 3), ("unnamed", 5)):
        assert measured.metadata[f"{name}/recall"].value == 1
        assert measured.metadata[f"{name}/rows_compared"].value == rows

    monkeypatch.setattr(LanceDBStore, "search", _without_the_nearest(LanceDBStore.search, of="corpus"))
    lossy = evaluation()
    assert not lossy.passed
    assert lossy.description == "corpus: of 9 nearest rows 3 are not found"
    assert lossy.metadata["unnamed/recall"].value == 1

    really = LanceDBStore.searches_exactly
    monkeypatch.setattr(LanceDBStore, "searches_exactly", _damaged(really, of="corpus"))
    damaged = evaluation()
    assert not damaged.passed
    assert damaged.description == "corpus cannot be searched: it is damaged"
    assert damaged.metadata["unnamed/recall"].value == 1


def _without_the_nearest(search: Any, of: str) -> Any:
    return lambda store, name, *arguments: search(store, name, *arguments).slice(int(name.startswith(f"{of}__")))


def _damaged(really: Any, of: str) -> Any:
    def searches_exactly(store: LanceDBStore, name: str) -> Any:
        if name.startswith(f"{of}__"):
            raise StoreError("it is damaged")
        return really(store, name)

    return searches_exactly


def test_schedules_launch_both_once_a_day() -> None:
    from vectorize_pipelines.definitions import defs

    schedules = {
        schedule.name: schedule for schedule in defs.schedules or [] if isinstance(schedule, dg.ScheduleDefinition)
    }
    for name in ("maintain_collections_daily", "check_indexes_daily"):
        assert schedules[name].default_status == dg.DefaultScheduleStatus.RUNNING
        assert defs.resolve_job_def(schedules[name].job_name).name == name.removesuffix("_daily")
