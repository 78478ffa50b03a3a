"""What launches runs over a folder by itself."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest

from tests.small_corpus import write_document
from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.partitions import today
from vectorize_pipelines.runs.tags import COLLECTION_TAG, MODE_TAG, SHARD_TAG
from vectorize_pipelines.settings import load_settings


@pytest.fixture
def instance(corpus: Path, shared_parsers: None) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def tick(instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    from vectorize_pipelines.sensors.files import CORPUS, new_files_sensor

    result = new_files_sensor(CORPUS, load_settings())(dg.build_sensor_context(instance=instance, cursor=cursor))
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
    from vectorize_pipelines.sensors import files as new_files

    first = tick(instance)
    assert isinstance(first, dg.SensorResult)
    again = tick(instance, first.cursor)
    assert isinstance(again, dg.SkipReason)
    assert "next try" in (again.skip_message or "")

    not_before = json.loads(first.cursor or "")["0/1"]["not_before"]
    monkeypatch.setattr(new_files, "time", SimpleNamespace(time=lambda: not_before + 1))
    later = tick(instance, first.cursor)
    assert isinstance(later, dg.SensorResult)
    assert json.loads(later.cursor or "")["0/1"]["launches"] == 2

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
    from vectorize_pipelines.definitions import defs
    from vectorize_pipelines.runs.held import run_lock

    job = defs.resolve_job_def("embed_corpus")
    tags = {MODE_TAG: "drain", COLLECTION_TAG: "corpus"}
    killed = instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    with run_lock(load_settings(), killed.run_id):
        assert isinstance(tick(instance), dg.SkipReason)
    assert isinstance(tick(instance), dg.SensorResult)


@pytest.mark.slow
def test_a_folder_of_more_files_than_a_run_takes_is_launched_in_shards_and_only_those_with_work_again(
    instance: dg.DagsterInstance, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(8):
        write_document(corpus, f"further-{n}.md", f"text number {n}", 1)
    monkeypatch.setenv("VECTORIZE_CORPUS__FILES_PER_RUN", "4")
    first = tick(instance)
    assert isinstance(first, dg.SensorResult)
    requests = {request.tags[SHARD_TAG]: request for request in first.run_requests or []}
    assert set(requests) <= {f"{index}/4" for index in range(4)}
    for shard, request in requests.items():
        assert isinstance(request.run_config, dict)
        assert request.run_config["ops"]["corpus_embeddings"]["config"]["shard"] == shard
    died = max(requests)
    assert all(drain(instance, request).success for shard, request in requests.items() if shard != died)

    assert isinstance(tick(instance, first.cursor), dg.SkipReason), "the one that died is left alone for a while"
    again = tick(instance)
    assert isinstance(again, dg.SensorResult)
    (request,) = again.run_requests or []
    assert request.tags[SHARD_TAG] == died
    assert drain(instance, request).success
    assert isinstance(tick(instance), dg.SkipReason)


def test_a_missing_folder_is_said_in_the_tick(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VECTORIZE_CORPUS__PATH", str(tmp_path / "nowhere"))
    result = tick(instance)
    assert isinstance(result, dg.SkipReason)
    assert "nowhere" in (result.skip_message or "")


def test_the_schedule_reconciles() -> None:
    from vectorize_pipelines.schedules import reconcile_schedule
    from vectorize_pipelines.sensors.files import CORPUS

    with dg.instance_for_test() as instance:  # a schedule's context takes no ephemeral one
        requests = reconcile_schedule(CORPUS, load_settings())(dg.build_schedule_context(instance=instance))
    assert isinstance(requests, list)
    (request,) = requests
    assert request.run_config["ops"]["corpus_embeddings"]["config"] == {"mode": "drain", "reconcile": True}


@pytest.mark.parametrize(
    ("under_way", "launched"), [(["1/4"], 4), (["1/4", "2/4"], 4), (["1/4", "1/2"], 1), (["0/1"], 1)]
)
def test_the_schedule_launches_nothing_that_what_is_under_way_has_refused(under_way: list[str], launched: int) -> None:
    from vectorize_pipelines.definitions import defs
    from vectorize_pipelines.schedules import reconcile_schedule
    from vectorize_pipelines.sensors.files import CORPUS

    settings = load_settings()
    with dg.instance_for_test() as instance:  # a schedule's context takes no ephemeral one
        for shard in under_way:
            request = CORPUS.drain_request(settings, Shard.parse(shard))
            instance.create_run_for_job(defs.resolve_job_def("embed_corpus"), tags=dict(request.tags))
        requests = reconcile_schedule(CORPUS, settings)(dg.build_schedule_context(instance=instance))
    assert isinstance(requests, list)
    shards = [Shard.parse(request.tags.get(SHARD_TAG, "0/1")) for request in requests]
    assert shards == Shard.layout(launched)
