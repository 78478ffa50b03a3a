"""The assets from Kafka, their checks and the job for one request, in this process, with a real broker."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.orchestration.conftest import DAYS
from tests.orchestration.requests_in_kafka import rows, send, text
from vectorize_pipelines.drain_runs import drain_tags
from vectorize_pipelines.home import use_dagster_home
from vectorize_pipelines.items import Modality
from vectorize_pipelines.jobs import MODE_TAG, OWNS_TAG, REQUEST_ID_TAG, SHARD_TAG, TOPIC_TAG, WIND_DOWN_TAG
from vectorize_pipelines.ledger import RequestLedger
from vectorize_pipelines.messaging.lag import partition_lags
from vectorize_pipelines.partitions import today
from vectorize_pipelines.request_state import RequestState
from vectorize_pipelines.settings import KafkaSettings, load_settings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.filters import Equal

KEY = dg.AssetKey("text_embeddings")


@pytest.fixture
def instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    use_dagster_home(load_settings())
    with dg.DagsterInstance.get() as instance:
        yield instance


def run(
    instance: dg.DagsterInstance, first: str = today(), last: str = "", job: str = "embed_text", **config: Any
) -> dg.ExecuteInProcessResult:
    from vectorize_pipelines.definitions import defs

    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last or first}
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance,
        tags=tags,
        run_config={"ops": {f"{job.removeprefix('embed_')}_embeddings": {"config": config}}},
        raise_on_error=False,
    )


def figures(instance: dg.DagsterInstance, day: str) -> dict[str, Any]:
    """The metadata of a day's latest materialization."""
    wanted = dg.AssetRecordsFilter(asset_key=KEY, asset_partitions=[day])
    (record,) = instance.fetch_materializations(wanted, limit=1).records
    assert record.asset_materialization is not None
    return {name: value.value for name, value in record.asset_materialization.metadata.items()}


def failure(result: dg.ExecuteInProcessResult) -> str:
    """Why the one step that failed did."""
    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure]
    data = event.step_failure_data.user_failure_data
    assert data is not None, event
    return data.description or ""


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {each.check_name: each.passed for each in result.get_asset_check_evaluations()}


def test_a_drain_run_takes_what_waits(instance: dg.DagsterInstance, kafka_settings: KafkaSettings) -> None:
    old = DAYS[0].isoformat()
    send(kafka_settings, [text(f"old-{n}", f"an old note about boat {n}") for n in range(3)], day=DAYS[0])
    send(kafka_settings, [text(f"new-{n}", f"a new note about boat {n}") for n in range(4)])
    send(kafka_settings, [text("elsewhere", "a note for another collection", collection="notes"), b"no JSON"])
    result = run(instance, mode="drain", once=True)
    assert result.success
    assert checks(result) == {"sound_vectors": True, "rows_match_requests": True, "canary_recall": True}
    assert {row["source_id"] for row in rows("texts")} == {*(f"old-{n}" for n in range(3)), *(f"new-{n}" for n in range(4))}
    assert [row["source_id"] for row in rows("notes")] == ["elsewhere"]
    of_today = figures(instance, today())
    assert (of_today["encoded"], of_today["messages"], of_today["dead_letters"], of_today["lag"]) == (5, 9, 1, 0)
    assert of_today["messages_per_second"] > 0
    assert of_today["collection"] == "notes, texts"
    assert figures(instance, old)["encoded"] == 3
    assert "messages" not in figures(instance, old)
    assert sum(each.lag for each in partition_lags(kafka_settings, Modality.TEXT)) == 0
    tags = result.dagster_run.tags | (instance.get_run_by_id(result.run_id) or result.dagster_run).tags
    topic = f"{kafka_settings.topic_prefix}.text"
    assert (tags[MODE_TAG], tags[SHARD_TAG], tags[TOPIC_TAG], tags[OWNS_TAG]) == ("drain", "0/1", topic, f"{topic} 0/1")
