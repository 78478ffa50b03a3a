"""A check that has failed stays failed until what it found is mended, whatever the runs between look at."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from tests.assets.materializing import run
from tests.small_corpus import DAYS, write_document
from vectorize_pipelines.assets.checks.findings import Look, examine
from vectorize_pipelines.core.records import record_schema
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.home import use_dagster_home
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.filters.expressions import Equal

FIRST, SECOND = DAYS[0].isoformat(), DAYS[1].isoformat()


@pytest.fixture
def instance(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    use_dagster_home(load_settings())
    with dg.DagsterInstance.get() as instance:
        yield instance


@pytest.fixture
def store(instance: dg.DagsterInstance) -> VectorStore:
    assert run(instance, mode="drain").success
    return open_store(load_settings().store, load_settings().home)


def spoil(store: VectorStore, day: str, vector: np.ndarray[Any, Any]) -> None:
    """Give the rows of a day another vector, behind everybody's back."""
    rows = store.fetch("corpus", Equal("partition", day), record_schema(384).names)
    field = rows.schema.field("vector")
    vectors = np.tile(vector.astype(np.float32), (rows.num_rows, 1))
    spoilt = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=field.type)
    store.upsert("corpus", rows.set_column(rows.schema.get_field_index("vector"), field, spoilt))


def outcome(result: dg.ExecuteInProcessResult, check: str) -> tuple[bool, dg.AssetCheckSeverity, str]:
    """Whether a check passed in a run, how severe it is otherwise, and what it says."""
    (found,) = [each for each in result.get_asset_check_evaluations() if each.check_name == check]
    return found.passed, found.severity, found.description or ""


@pytest.mark.parametrize(
    ("check", "vector"),
    [("sound_vectors", np.full(384, 7)), ("canary_recall", np.eye(384)[0])],
    ids=["not unit", "not its own"],
)
def test_a_bad_vector_keeps_its_check_failed_until_it_is_embedded_again(
    instance: dg.DagsterInstance, store: VectorStore, check: str, vector: np.ndarray[Any, Any]
) -> None:
    spoil(store, FIRST, vector)
    found = run(instance, first=FIRST)
    assert not found.success
    assert outcome(found, check)[:2] == (False, dg.AssetCheckSeverity.ERROR)

    elsewhere = run(instance, first=SECOND)
    assert elsewhere.success, "a run is not held responsible for what another one found"
    passed, severity, said = outcome(elsewhere, check)
    assert (passed, severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "1 in corpus" in said
    assert "vectorize ingest" in said

    mending = run(instance, mode="drain")
    assert mending.success
    passed, _, said = outcome(mending, check)
    assert passed
    assert "1 that an earlier run found are in order now" in said

    after = run(instance, first=SECOND)
    assert outcome(after, check)[0]
    assert "earlier run" not in outcome(after, check)[2]


def test_missing_rows_keep_their_check_failed_until_they_are_back(
    instance: dg.DagsterInstance, store: VectorStore
) -> None:
    store.delete("corpus", Equal("partition", FIRST))
    alone = dg.AssetCheckKey(dg.AssetKey("corpus_embeddings"), "rows_match_manifest")
    from vectorize_pipelines.definitions import defs

    job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_check_selection={alone})
    assert not outcome(job.execute_in_process(instance=instance, raise_on_error=False), "rows_match_manifest")[0]
    elsewhere = run(instance, first=SECOND)
    assert elsewhere.success
    assert outcome(elsewhere, "rows_match_manifest")[:2] == (False, dg.AssetCheckSeverity.WARN)
    assert outcome(run(instance, mode="drain"), "rows_match_manifest")[0]


def test_a_failed_check_of_one_collection_is_not_hidden_by_a_run_of_another(
    instance: dg.DagsterInstance, store: VectorStore, tmp_path: Path
) -> None:
    spoil(store, FIRST, np.full(384, 7))
    assert not run(instance, first=FIRST).success
    other = tmp_path / "other"
    write_document(other, "note.txt", "Ferries leave at noon.")
    elsewhere = run(instance, mode="drain", path=str(other), collection="other")
    assert elsewhere.success
    assert outcome(elsewhere, "sound_vectors")[:2] == (False, dg.AssetCheckSeverity.WARN)
    assert outcome(run(instance, mode="drain"), "sound_vectors")[0]


def test_a_document_that_was_found_wrong_and_is_deleted_goes_from_the_store(
    instance: dg.DagsterInstance,
    store: VectorStore,
    corpus: Path,
) -> None:
    spoil(store, FIRST, np.full(384, 7))
    assert not run(instance, first=FIRST).success
    (corpus / "lamp.md").unlink()
    gone = run(instance, mode="drain")
    assert gone.success
    assert outcome(gone, "sound_vectors")[0]
    assert store.count("corpus", Equal("partition", FIRST)) == 0


def test_what_cannot_be_looked_at_again_is_not_taken_for_mended(
    instance: dg.DagsterInstance, store: VectorStore
) -> None:
    lamp = store.fetch("corpus", Equal("partition", FIRST), ("id",))["id"].to_pylist()
    look = Look("corpus", None, (), unlooked=lamp)
    settings = load_settings()
    failing = Look("corpus", None, lamp)
    assert not examine(settings, "test", "a check", lambda: [failing], lambda _: []).passed
    still = examine(settings, "test", "a check", list, lambda _: [look])
    assert not still.passed
    assert still.mended == 0
    mended = examine(settings, "test", "a check", list, lambda _: [Look("corpus", None, ())])
    assert mended.passed
    assert mended.mended == 1


def test_what_was_found_in_a_collection_that_was_dropped_is_no_longer_wrong(
    instance: dg.DagsterInstance, store: VectorStore, tmp_path: Path
) -> None:
    spoil(store, FIRST, np.full(384, 7))
    assert not run(instance, first=FIRST).success
    store.drop(store.collection("corpus").physical)
    other = tmp_path / "other"
    write_document(other, "note.txt", "Ferries leave at noon.")
    elsewhere = run(instance, mode="drain", path=str(other), collection="other")
    assert outcome(elsewhere, "sound_vectors")[0]
