"""The request of a run of its own that is killed, or ended before it began: whoever asked for it hears of that."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import dagster as dg
import pytest

from vectorize_pipelines.assets.single_request import embed_request
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.pipeline.requests.runs import abandon_single
from vectorize_pipelines.pipeline.requests.single import SingleRequest
from vectorize_pipelines.runs.tags import REQUEST_ID_TAG, SUBMITTED_TAG, WILL_RETRY_TAG
from vectorize_pipelines.sensors.run_failures import cancelled_requests, failed_requests
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow

REQUEST: dict[str, Any] = {"task_type": "text_vectorization", "data": "a boat"}


@pytest.fixture
def instance(home: object) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def died(instance: dg.DagsterInstance, **tags: str) -> Any:
    """The context of a run that Dagster found dead."""
    run = instance.create_run_for_job(
        embed_request,
        run_config={"ops": {"request": {"config": REQUEST}}},
        tags={REQUEST_ID_TAG: "mine", **tags},
        status=dg.DagsterRunStatus.STARTED,
    )
    event = instance.report_run_failed(run, "the run's worker process is gone")
    failed = instance.get_run_by_id(run.run_id)
    assert failed is not None
    return dg.build_run_status_sensor_context(
        sensor_name="failed_requests", dagster_event=event, dagster_instance=instance, dagster_run=failed
    ).for_run_failure()


def row_of(settings: Settings) -> RequestRow | None:
    with closing(RequestLedger.open(settings)) as ledger:
        return ledger.get("mine")


def test_it_has_failed_once_it_is_not_started_again(instance: dg.DagsterInstance, settings: Settings) -> None:
    assert isinstance(failed_requests(died(instance, **{WILL_RETRY_TAG: "true"})), dg.SkipReason)
    assert row_of(settings) is None
    assert failed_requests(died(instance)) is None
    row = row_of(settings)
    assert row is not None
    assert (row.state, row.error_class) == (RequestState.FAILED, "RunDiedError")
    assert "Send it again" in (row.error_message or "")


def test_what_the_run_noted_itself_stays(instance: dg.DagsterInstance, settings: Settings) -> None:
    context = died(instance)
    single = SingleRequest.of({"task_id": "mine", **REQUEST}, context.dagster_run.run_id)
    abandon_single(settings, single, None)
    assert isinstance(failed_requests(context), dg.SkipReason)
    row = row_of(settings)
    assert row is not None
    assert row.state is RequestState.CANCELLED


def cancelled(instance: dg.DagsterInstance, **tags: str) -> Any:
    """The context of a run that was ended before it began."""
    run = instance.create_run_for_job(
        embed_request,
        run_config={"ops": {"request": {"config": REQUEST}}},
        tags={REQUEST_ID_TAG: "mine", **tags},
        status=dg.DagsterRunStatus.NOT_STARTED,
    )
    event = instance.report_run_canceled(run)
    ended = instance.get_run_by_id(run.run_id)
    assert ended is not None
    return dg.build_run_status_sensor_context(
        sensor_name="cancelled_requests", dagster_event=event, dagster_instance=instance, dagster_run=ended
    )


def test_one_that_never_began_is_cancelled(instance: dg.DagsterInstance, settings: Settings) -> None:
    assert cancelled_requests(cancelled(instance, **{SUBMITTED_TAG: "1700000000000"})) is None
    row = row_of(settings)
    assert row is not None
    assert (row.state, row.version) == (RequestState.CANCELLED, (1_700_000_000_000, "", 0, 1_700_000_000_000))
    assert isinstance(cancelled_requests(cancelled(instance)), dg.SkipReason)
