"""A run that fails is posted to a webhook."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest

from vectorize_pipelines.runs import dead
from vectorize_pipelines.runs.tags import WILL_RETRY_TAG


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@contextmanager
def webhook(status: int) -> Iterator[tuple[str, list[dict[str, str]]]]:
    posted: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Silence."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook/secret-token", posted
    finally:
        server.shutdown()
        server.server_close()


def failed_run(instance: dg.DagsterInstance) -> dg.RunFailureSensorContext:
    @dg.op
    def fails() -> None:
        raise ValueError("it had to")

    @dg.job
    def failing() -> None:
        fails()

    result = failing.execute_in_process(instance=instance, raise_on_error=False)
    return dg.build_run_status_sensor_context(
        sensor_name="failed_runs",
        dagster_event=result.get_run_failure_event(),
        dagster_instance=instance,
        dagster_run=result.dagster_run,
    ).for_run_failure()


def test_a_failed_run_is_posted(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    from vectorize_pipelines.sensors.run_failures import failed_runs

    context = failed_run(instance)
    with webhook(200) as (url, posted):
        monkeypatch.setenv("VECTORIZE_ALERTS__WEBHOOK_URL", url)
        failed_runs(context)
    (body,) = posted
    assert (body["job"], body["status"], body["run_id"]) == ("failing", "FAILURE", context.dagster_run.run_id)


def test_a_failure_that_dagster_is_told_twice_is_posted_once(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vectorize_pipelines.sensors.run_failures import failed_runs

    run = failed_run(instance).dagster_run
    instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "true"})
    monkeypatch.setattr(dead, "REMINDED_AFTER", timedelta())
    assert dead.remind_of_retries(instance) == [run.run_id]
    told = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    with webhook(200) as (url, posted):
        monkeypatch.setenv("VECTORIZE_ALERTS__WEBHOOK_URL", url)
        for each in told:
            assert each.dagster_event is not None
            failed_runs(
                dg.build_run_status_sensor_context(
                    sensor_name="failed_runs",
                    dagster_event=each.dagster_event,
                    dagster_instance=instance,
                    dagster_run=run,
                ).for_run_failure()
            )
    assert len(told) == 2
    assert [body["run_id"] for body in posted] == [run.run_id]


def test_a_webhook_that_refuses_fails_the_tick_without_showing_its_url(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vectorize_pipelines.sensors.run_failures import failed_runs

    context = failed_run(instance)
    with webhook(500) as (url, _):
        monkeypatch.setenv("VECTORIZE_ALERTS__WEBHOOK_URL", url)
        with pytest.raises(dg.Failure, match="500") as caught:
            failed_runs(context)
    assert "secret-token" not in str(caught.value.description)


def test_without_a_webhook_the_tick_says_so(instance: dg.DagsterInstance) -> None:
    from vectorize_pipelines.sensors.run_failures import failed_runs

    result = failed_runs(failed_run(instance))
    assert isinstance(result, dg.SkipReason)
