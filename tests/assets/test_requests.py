"""The assets from Kafka, their checks and the job for one request, in this process, with a real broker."""

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.instances import installed_instance
from tests.messaging.requests_in_kafka import rows, send, text
from tests.small_corpus import DAYS, NOW, TODAY
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.core.shards import WHOLE
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.kafka.lag import partition_lags
from vectorize_pipelines.partitions import today
from vectorize_pipelines.runs import drain as drain_runs
from vectorize_pipelines.runs.tags import (
    MODE_TAG,
    OWNS_TAG,
    REQUEST_ID_TAG,
    SHARD_TAG,
    SUBMITTED_TAG,
    TOPIC_TAG,
    WIND_DOWN_TAG,
    drain_tags,
)
from vectorize_pipelines.settings import KafkaSettings, load_settings
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.filters.expressions import Equal

KEY = dg.AssetKey("text_embeddings")


@pytest.fixture
def instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    with installed_instance(monkeypatch) as instance:
        yield instance


def run(
    instance: dg.DagsterInstance, first: str = "", last: str = "", job: str = "embed_text", **config: Any
) -> dg.ExecuteInProcessResult:
    from vectorize_pipelines.definitions import defs

    first = first or TODAY
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


def tags_of(instance: dg.DagsterInstance, run_id: str) -> dict[str, str]:
    found = instance.get_run_by_id(run_id)
    assert found is not None
    return dict(found.tags)


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {each.check_name: each.passed for each in result.get_asset_check_evaluations()}


def requests_checked(result: dg.ExecuteInProcessResult) -> object:
    """How many requests were held against the store."""
    (found,) = [each for each in result.get_asset_check_evaluations() if each.check_name == "rows_match_requests"]
    return found.metadata["requests"].value


def test_a_drain_run_takes_what_waits(instance: dg.DagsterInstance, kafka_settings: KafkaSettings) -> None:
    old = DAYS[0].isoformat()
    send(kafka_settings, [text(f"old-{n}", f"an old note about boat {n}") for n in range(3)], day=DAYS[0])
    send(kafka_settings, [text(f"new-{n}", f"a new note about boat {n}") for n in range(4)], at=NOW)
    send(kafka_settings, [text("elsewhere", "a note for another collection", collection="notes"), b"no JSON"], at=NOW)
    result = run(instance, mode="drain", once=True)
    assert result.success
    names = ("sound_vectors", "rows_match_requests", "canary_recall", "index_recall")
    assert checks(result) == dict.fromkeys(names, True)
    assert requests_checked(result) == 8
    assert {row["source_id"] for row in rows("texts")} == {
        *(f"old-{n}" for n in range(3)),
        *(f"new-{n}" for n in range(4)),
    }
    assert [row["source_id"] for row in rows("notes")] == ["elsewhere"]
    of_today = figures(instance, TODAY)
    assert (of_today["encoded"], of_today["messages"], of_today["dead_letters"], of_today["lag"]) == (5, 9, 1, 0)
    assert of_today["messages_per_second"] > 0
    assert of_today["collection"] == "notes, texts"
    assert figures(instance, old)["encoded"] == 3
    assert "messages" not in figures(instance, old)
    assert sum(each.lag for each in partition_lags(kafka_settings, followed_topic(kafka_settings, "text"))) == 0
    tags = tags_of(instance, result.run_id)
    topic = f"{kafka_settings.topic_prefix}.text"
    assert (tags[MODE_TAG], tags[SHARD_TAG], tags[TOPIC_TAG], tags[OWNS_TAG]) == ("drain", "0/1", topic, f"{topic} 0/1")


def test_a_run_of_yesterday_takes_what_came_after_midnight(
    instance: dg.DagsterInstance, kafka_settings: KafkaSettings
) -> None:
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    send(kafka_settings, [text(f"new-{n}", f"a new note about boat {n}") for n in range(4)])
    result = run(instance, yesterday, mode="drain", once=True)
    assert result.success
    assert requests_checked(result) == 4
    (day,) = {row["partition"] for row in rows("texts")}
    assert day > yesterday
    assert figures(instance, day)["encoded"] == 4
    assert figures(instance, yesterday)["messages"] == 4


def test_a_backfill_of_three_days_twice_leaves_the_same_rows(
    instance: dg.DagsterInstance, kafka_settings: KafkaSettings
) -> None:
    for n, day in enumerate(DAYS):
        send(kafka_settings, [text(f"note-{n}-{m}", f"note {m} of day {n}") for m in range(3)], day=day)
    send(kafka_settings, [text("note-0-0", "note 0 of day 0, mended")], day=DAYS[1])
    send(kafka_settings, [None], key="note-1-1", day=DAYS[2])
    first, last = DAYS[0].isoformat(), DAYS[2].isoformat()
    assert run(instance, first, last).success
    stored = rows("texts")
    assert {row["source_id"]: row["partition"] for row in stored}["note-0-0"] == DAYS[1].isoformat()
    assert len(stored) == 8
    assert [figures(instance, day.isoformat())["documents"] for day in DAYS[:1]] == [2]
    assert "messages" not in figures(instance, first)
    assert figures(instance, last)["messages"] == 11
    assert run(instance, first, last).success
    assert rows("texts") == stored
    assert figures(instance, first)["encoded"] == 0
    assert sum(each.lag for each in partition_lags(kafka_settings, followed_topic(kafka_settings, "text"))) == 11, (
        "a replay commits nothing"
    )


def test_a_run_that_finds_nothing_and_one_of_poison_alone_succeed(
    instance: dg.DagsterInstance, kafka_settings: KafkaSettings
) -> None:
    assert run(instance, mode="drain", once=True).success
    send(kafka_settings, [b"no JSON", b"[]"], at=NOW)
    assert run(instance, mode="drain", once=True).success
    assert figures(instance, TODAY)["dead_letters"] == 2
    assert figures(instance, TODAY)["collection"] == "texts"


def test_rows_that_are_gone_fail_the_check(instance: dg.DagsterInstance, kafka_settings: KafkaSettings) -> None:
    send(kafka_settings, [text(f"note-{n}", f"note {n}") for n in range(4)], day=DAYS[0])
    day = DAYS[0].isoformat()
    assert run(instance, day).success
    store = open_store(load_settings().store, load_settings().home)
    store.delete("texts", Equal("source_id", "note-2"))

    from vectorize_pipelines.definitions import defs

    check = dg.AssetCheckKey(KEY, "rows_match_requests")
    alone = defs.resolve_implicit_global_asset_job_def().get_subset(asset_check_selection={check})
    (evaluation,) = alone.execute_in_process(instance=instance, raise_on_error=False).get_asset_check_evaluations()
    assert not evaluation.passed
    assert evaluation.metadata["differing"].value == 1
    assert run(instance, day).success, "a replay writes what is missing"
    assert len(rows("texts")) == 4


def test_without_kafka_a_run_says_what_is_missing(instance: dg.DagsterInstance) -> None:
    assert "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS" in failure(run(instance))


def test_a_run_told_to_wind_down_ends_and_says_why(
    instance: dg.DagsterInstance, kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(kafka_settings, [text("note", "a note")])
    earlier = instance.create_run_for_job(
        _job(), tags=drain_tags(followed_topic(kafka_settings, "text")), status=dg.DagsterRunStatus.NOT_STARTED
    )
    instance.report_dagster_event(
        dg.DagsterEvent(event_type_value="PIPELINE_START", job_name="embed_text"), earlier.run_id
    )
    monkeypatch.setattr(drain_runs, "TAKE_OVER_SECONDS", 0.1)
    monkeypatch.setattr(drain_runs, "LOOK_SECONDS", 0.1)
    other = run(instance, mode="drain", once=True, shard="0/2")
    assert "has not ended" in failure(other)
    assert "handing over to run" in tags_of(instance, earlier.run_id)[WIND_DOWN_TAG]

    beside = drain_runs.DrainRun(instance, earlier.run_id, followed_topic(kafka_settings, "text"), WHOLE)
    assert beside.reason_to_end() == tags_of(instance, earlier.run_id)[WIND_DOWN_TAG]
    instance.report_run_failed(earlier)
    assert run(instance, mode="drain", once=True, shard="0/2").success


def _job() -> dg.JobDefinition:
    from vectorize_pipelines.definitions import defs

    return defs.resolve_job_def("embed_text")


def embed(instance: dg.DagsterInstance, tags: dict[str, str] | None = None, **request: Any) -> Any:
    from vectorize_pipelines.definitions import defs

    return defs.resolve_job_def("embed_request").execute_in_process(
        instance=instance, run_config={"ops": {"request": {"config": request}}}, tags=tags, raise_on_error=False
    )


def test_one_request_without_kafka(instance: dg.DagsterInstance) -> None:
    before = today()
    result = embed(instance, {REQUEST_ID_TAG: "mine"}, task_type="text_vectorization", data="a boat at sea")
    assert result.success
    (row,) = rows("texts")
    assert (row["source_id"], row["text"]) == ("mine", "a boat at sea")
    assert row["partition"] in (before, today())  # midnight may have passed
    with closing(RequestLedger.open(load_settings())) as ledger:
        found = ledger.get("mine")
        assert found is not None
        assert (found.state, found.vectors, found.run_id) == (RequestState.COMPLETED, 1, result.run_id)
    assert figures(instance, row["partition"])["encoded"] == 1

    again = embed(instance, {REQUEST_ID_TAG: "mine"}, task_type="batch_vectorization", data=["a boat", "an island"])
    assert again.success
    assert [row["text"] for row in rows("texts") if row["source_id"] == "mine"] in (
        ["a boat", "an island"],
        ["an island", "a boat"],
    )
    unnamed = embed(instance, task_type="text_vectorization", data="a lamp")
    assert tags_of(instance, unnamed.run_id)[REQUEST_ID_TAG] == unnamed.run_id


def test_one_request_that_cannot_be_embedded_fails_its_run(instance: dg.DagsterInstance) -> None:
    assert "data: must not be blank" in failure(embed(instance, task_type="text_vectorization", data=" "))
    refused = embed(instance, task_id="page", task_type="document_vectorization", data="http://127.0.0.1/a.html")
    assert "RefusedUriError" in failure(refused)
    with closing(RequestLedger.open(load_settings())) as ledger:
        found = ledger.get("page")
        assert found is not None
        assert (found.state, found.error_class) == (RequestState.FAILED, "RefusedUriError")


def test_requests_of_one_id_are_ordered_by_their_submission(instance: dg.DagsterInstance) -> None:
    """Whichever run starts first: the queue promises no order."""
    now_ms = time.time_ns() // 1_000_000
    for data, submitted_ms in (("the newer", now_ms), ("the older", now_ms - 1000)):
        tags = {REQUEST_ID_TAG: "mine", SUBMITTED_TAG: str(submitted_ms)}
        assert embed(instance, tags, task_type="text_vectorization", data=data).success
    assert [row["text"] for row in rows("texts")] == ["the newer"]
    with closing(RequestLedger.open(load_settings())) as ledger:
        found = ledger.get("mine")
        assert found is not None
        assert found.timestamp_ms == now_ms
    wrong = embed(instance, {SUBMITTED_TAG: "yesterday"}, task_type="text_vectorization", data="x")
    assert f"the tag {SUBMITTED_TAG} must be a time" in failure(wrong)
