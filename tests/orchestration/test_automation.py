"""What launches runs by itself, and who is told when one fails."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest

from tests.orchestration.conftest import write_document
from vectorize_pipelines.jobs import COLLECTION_TAG, MODE_TAG
from vectorize_pipelines.partitions import today
from vectorize_pipelines.settings import load_settings


@pytest.fixture
def instance(corpus: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def tick(instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    from vectorize_pipelines.sensors.new_files import new_corpus_files

    result = new_corpus_files(dg.build_sensor_context(instance=instance, cursor=cursor))
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def drain(instance: dg.DagsterInstance, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    from vectorize_pipelines.definitions import defs

    return defs.resolve_job_def("embed_corpus").execute_in_process(
        instance=instance, partition_key=request.partition_key, run_config=request.run_config, tags=dict(request.tags)
    )


def test_new_changed_and_deleted_files_each_launch_one_drain_run(instance: dg.DagsterInstance, corpus: Path) -> None:
    before = today()
    result = tick(instance)
    assert isinstance(result, dg.SensorResult)
    (request,) = result.run_requests or []
    assert request.partition_key in (before, today())  # midnight may have passed
    assert (request.tags[MODE_TAG], request.tags[COLLECTION_TAG]) == ("drain", "corpus")
    assert request.run_key is None
    assert drain(instance, request).success
    assert isinstance(tick(instance), dg.SkipReason)

    write_document(corpus, "lamp.md", "another text", 1)
    result = tick(instance)
    assert isinstance(result, dg.SensorResult)
    drain(instance, (result.run_requests or [])[0])
    assert isinstance(tick(instance), dg.SkipReason)

    (corpus / "boat.txt").unlink()
    assert isinstance(tick(instance), dg.SensorResult)


def test_the_same_work_is_not_launched_again_at_once_but_is_later(
    instance: dg.DagsterInstance, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vectorize_pipelines.sensors import new_files

    first = tick(instance)
    assert isinstance(first, dg.SensorResult)
    again = tick(instance, first.cursor)
    assert isinstance(again, dg.SkipReason)
    assert "next try" in (again.skip_message or "")

    not_before = json.loads(first.cursor or "")["not_before"]
    monkeypatch.setattr(new_files, "time", SimpleNamespace(time=lambda: not_before + 1))
    later = tick(instance, first.cursor)
    assert isinstance(later, dg.SensorResult)
    assert json.loads(later.cursor or "")["launches"] == 2

    write_document(corpus, "new.md", "other work", 1)
    assert isinstance(tick(instance, later.cursor), dg.SensorResult)


def test_nothing_is_launched_while_a_drain_run_is_under_way(instance: dg.DagsterInstance) -> None:
    from vectorize_pipelines.definitions import defs

    job = defs.resolve_job_def("embed_corpus")
    tags = {MODE_TAG: "drain", COLLECTION_TAG: "corpus"}
    instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    result = tick(instance)
    assert isinstance(result, dg.SkipReason)
    assert "under way" in (result.skip_message or "")


def test_a_drain_run_of_another_collection_is_no_reason_to_wait(instance: dg.DagsterInstance) -> None:
    from vectorize_pipelines.definitions import defs

    job = defs.resolve_job_def("embed_corpus")
    tags = {MODE_TAG: "drain", COLLECTION_TAG: "another"}
    instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    assert isinstance(tick(instance), dg.SensorResult)


def test_a_killed_drain_run_is_no_reason_to_wait(instance: dg.DagsterInstance) -> None:
    from vectorize_pipelines.dead_runs import run_lock
    from vectorize_pipelines.definitions import defs

    job = defs.resolve_job_def("embed_corpus")
    tags = {MODE_TAG: "drain", COLLECTION_TAG: "corpus"}
    killed = instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    with run_lock(load_settings(), killed.run_id):
        assert isinstance(tick(instance), dg.SkipReason)
    assert isinstance(tick(instance), dg.SensorResult)


def test_a_missing_folder_is_said_in_the_tick(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VECTORIZE_CORPUS__PATH", str(tmp_path / "nowhere"))
    result = tick(instance)
    assert isinstance(result, dg.SkipReason)
    assert "nowhere" in (result.skip_message or "")


def test_the_schedule_reconciles() -> None:
    from vectorize_pipelines.schedules import reconcile_corpus

    with dg.DagsterInstance.ephemeral() as instance:
        request = reconcile_corpus(dg.build_schedule_context(instance=instance))
    assert isinstance(request, dg.RunRequest)
    assert request.run_config["ops"]["corpus_embeddings"]["config"] == {"mode": "drain", "reconcile": True}


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
