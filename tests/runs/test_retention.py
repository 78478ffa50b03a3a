"""The daily clean-up, and the schedule for callbacks that are left over."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from tests.servers.web import answer, serving
from tests.state.rows import row
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import KafkaError
from vectorize_pipelines.messaging.callbacks import callback_row
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.messaging.messages import Origin
from vectorize_pipelines.runs.retention import deliver_callbacks, purge_runs, retention
from vectorize_pipelines.schedules import waiting_callbacks_schedule
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.callbacks import CallbackOutbox, CallbackState
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.versions import SourceVersions


@pytest.fixture
def instance(home: Path, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """With its runs and events in files, as an installation has them."""
    folder = tmp_path / "instance"
    folder.mkdir()
    with dg.DagsterInstance.local_temp(str(folder)) as instance:
        yield instance


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configured, not reached."""
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("VECTORIZE_CALLBACKS__ALLOW_PRIVATE", "true")


def _metadata(result: dg.ExecuteInProcessResult, op: str) -> dict[str, object]:
    (event,) = [each for each in result.events_for_node(op) if each.event_type is dg.DagsterEventType.STEP_OUTPUT]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def _since_start(days_ago: float) -> float:
    """Seconds from the rows' own start to so many days ago."""
    return (datetime.now(UTC) - timedelta(days=days_ago) - row().submitted_at).total_seconds()


def test_the_clean_up_says_what_it_removed(
    instance: dg.DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = RequestLedger.open(settings)
    old, recent = _since_start(31), _since_start(29)
    ledger.record(
        [
            row("old", submitted=old, finished=old),
            row("recent", submitted=old, finished=recent),
            row("waits", RequestState.PENDING, submitted=old),
        ]
    )
    versions = SourceVersions.open(settings)
    versions.record_deletions({"a": (1, "t", 0, 0)})

    first = retention.execute_in_process(instance=instance)
    assert _metadata(first, "remove_what_expired") == {
        "requests": 1,
        "assessments": 0,
        "cameras": 0,
        "callbacks": 0,
        "leases": 0,
        "deaths": 0,
        "provider_calls": 0,
        "lost_requests": 0,
    }
    assert {each.request_id for each in ledger.page().rows} == {"recent", "waits"}
    assert versions.known("texts", ["a"]), "deletions are kept unless a setting says otherwise"

    def away(*_: object) -> int:
        raise KafkaError("the brokers are away")

    monkeypatch.setattr("vectorize_pipelines.runs.retention.fail_lost_requests", away)
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("VECTORIZE_RETENTION__DELETIONS_DAYS", "400")
    monkeypatch.setenv("VECTORIZE_RETENTION__RUNS_DAYS", "1")
    second = retention.execute_in_process(instance=instance)
    assert _metadata(second, "remove_what_expired") == {
        "requests": 0,
        "assessments": 0,
        "cameras": 0,
        "callbacks": 0,
        "leases": 0,
        "deaths": 0,
        "provider_calls": 0,
        "lost_requests": 0,
        "deletions": 1,
        "runs": 0,
    }
    assert versions.known("texts", ["a"]) == {}
    ledger.close()
    versions.close()


@pytest.mark.slow
def test_runs_go_but_for_the_latest_of_each_partition(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small pages, so that there are several, with runs that stay and runs that go in each."""
    monkeypatch.setattr("vectorize_pipelines.runs.retention.RUNS_TOGETHER", 2)
    days = dg.StaticPartitionsDefinition(["a", "b", "c"])

    @dg.asset(partitions_def=days)
    def daily() -> None:
        pass

    @dg.asset
    def whole() -> None:
        pass

    @dg.asset
    def failing() -> None:
        raise ValueError

    first = dg.materialize([daily], partition_key="a", instance=instance).run_id
    kept = [dg.materialize([daily], partition_key=day, instance=instance).run_id for day in ("b", "a", "c")]
    older = dg.materialize([whole], instance=instance).run_id
    kept.append(dg.materialize([whole], instance=instance).run_id)
    failed = dg.materialize([failing], instance=instance, raise_on_error=False).run_id
    unfinished = instance.create_run_for_job(retention, status=dg.DagsterRunStatus.STARTED).run_id
    assert purge_runs(instance, datetime.now(UTC) - timedelta(days=1)) == 0
    assert purge_runs(instance, datetime.now(UTC) + timedelta(days=1)) == 3
    assert {run.run_id for run in instance.get_runs()} == {*kept, unfinished}
    for gone in (first, older, failed):
        assert instance.all_logs(gone) == []
    assert instance.get_materialized_partitions(dg.AssetKey("daily")) == {"a", "b", "c"}
    assert purge_runs(instance, datetime.now(UTC) + timedelta(days=1)) == 0


def _tick(instance: dg.DagsterInstance) -> dg.RunRequest | dg.SkipReason:
    result = waiting_callbacks_schedule(load_settings())(dg.build_schedule_context(instance=instance))
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result


def test_without_kafka_nobody_looks_for_callbacks(instance: dg.DagsterInstance, home: Path) -> None:
    result = _tick(instance)
    assert isinstance(result, dg.SkipReason)
    assert "Kafka is not configured" in (result.skip_message or "")
    assert not (home / "dagster").exists()


@pytest.mark.usefixtures("kafka")
def test_callbacks_that_are_left_over_are_delivered(instance: dg.DagsterInstance, settings: Settings) -> None:
    result = _tick(instance)
    assert isinstance(result, dg.SkipReason)
    assert "No callback is due" in (result.skip_message or "")
    outbox = CallbackOutbox.open(settings)
    with serving(lambda handler: answer(handler, 200)) as web:
        event = ResultEvent("one", RequestState.COMPLETED)
        outbox.enqueue([callback_row(web.url("/hook"), event, Origin("vectorize.text", 0, 0, 0))])
        assert isinstance(_tick(instance), dg.RunRequest)
        under_way = instance.create_run_for_job(deliver_callbacks, status=dg.DagsterRunStatus.STARTED)
        assert isinstance(_tick(instance), dg.SkipReason)
        instance.report_run_failed(under_way)
        done = deliver_callbacks.execute_in_process(instance=instance)
        assert web.asked == ["/hook"]
    assert _metadata(done, "deliver_waiting_callbacks") == {"delivered": 1, "postponed": 0, "given_up": 0}
    status = outbox.status("one")
    assert status is not None
    assert status.state is CallbackState.DELIVERED
    outbox.close()
