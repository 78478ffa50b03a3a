"""The asset of images: its job, its checks, its sensor and its schedule, on a real instance."""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.encoders.tiny_clips import build_clip
from tests.images.pictures import encoded, photo
from tests.small_corpus import DAYS
from vectorize_pipelines.partitions import today
from vectorize_pipelines.runs.tags import COLLECTION_TAG, MODE_TAG
from vectorize_pipelines.settings import load_settings


@pytest.fixture
def pictures(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photograph on each of two days, and what is none on the second."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    files = ((encoded(photo(1, 96, 64), "JPEG"), 0), (encoded(photo(2, 96, 64), "PNG"), 1), (b"no image", 1))
    for number, (content, day) in enumerate(files):
        file = folder / f"{number}.jpg"
        file.write_bytes(content)
        at = dg.DailyPartitionsDefinition(DAYS[0].isoformat()).time_window_for_partition_key(DAYS[day].isoformat())
        os.utime(file, (at.start.timestamp() + 3600,) * 2)
    monkeypatch.setenv("VECTORIZE_GALLERY__PATH", str(folder))
    monkeypatch.setenv("VECTORIZE_MODELS__IMAGE", str(build_clip(tmp_path / "clip")))
    return folder


@pytest.fixture
def instance(pictures: Path) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:  # a schedule's context takes no ephemeral one
        yield instance


def test_the_sensor_launches_what_the_asset_then_embeds_and_checks(
    instance: dg.DagsterInstance, pictures: Path
) -> None:
    from vectorize_pipelines.definitions import defs
    from vectorize_pipelines.schedules import reconcile_schedule
    from vectorize_pipelines.sensors.files import GALLERY, new_files_sensor

    new_gallery_files = new_files_sensor(GALLERY, load_settings())
    assert GALLERY.watched(load_settings())
    result = new_gallery_files(dg.build_sensor_context(instance=instance))
    assert isinstance(result, dg.SensorResult)
    (request,) = result.run_requests or []
    assert (request.tags[MODE_TAG], request.tags[COLLECTION_TAG]) == ("drain", "gallery")
    run = defs.resolve_job_def("embed_gallery").execute_in_process(
        instance=instance, partition_key=request.partition_key, run_config=request.run_config, tags=dict(request.tags)
    )
    checks = {check.check_name: check for check in run.get_asset_check_evaluations()}
    assert checks.keys() == {"sound_vectors", "rows_match_manifest", "canary_recall", "index_recall"}
    assert all(check.passed for check in checks.values())
    assert checks["canary_recall"].metadata["sampled"].value == 2

    key = dg.AssetKey("gallery_embeddings")
    assert instance.get_materialized_partitions(key) == {
        DAYS[0].isoformat(),
        DAYS[1].isoformat(),
        request.partition_key,
    }
    second = {
        record.partition_key: record.asset_materialization.metadata
        for record in instance.fetch_materializations(key, limit=10).records
        if record.asset_materialization is not None
    }[DAYS[1].isoformat()]
    assert (second["documents"].value, second["chunks"].value, second["failed"].value) == (2, 1, 1)
    assert second["errors/UnsupportedImageError"].value == 1
    assert str(second["engine"].value).startswith("open_clip on cpu, ")

    assert isinstance(new_gallery_files(dg.build_sensor_context(instance=instance)), dg.SkipReason)
    with dg.build_schedule_context(instance=instance) as context:
        requests = reconcile_schedule(GALLERY, load_settings())(context)
    assert isinstance(requests, list)
    (scheduled,) = requests
    assert scheduled.run_config["ops"]["gallery_embeddings"]["config"] == {"mode": "drain", "reconcile": True}


def test_without_a_folder_nothing_is_watched_and_a_run_says_so(home: Path) -> None:
    from vectorize_pipelines.definitions import defs
    from vectorize_pipelines.sensors.files import GALLERY, new_files_sensor

    new_gallery_files = new_files_sensor(GALLERY, load_settings())
    assert not GALLERY.watched(load_settings())
    with dg.DagsterInstance.ephemeral() as instance:
        skipped = new_gallery_files(dg.build_sensor_context(instance=instance))
        assert isinstance(skipped, dg.SkipReason)
        assert "VECTORIZE_GALLERY__PATH" in (skipped.skip_message or "")
        run = defs.resolve_job_def("embed_gallery").execute_in_process(
            instance=instance, partition_key=today(), raise_on_error=False
        )
    assert not run.success
    (failure,) = [event for event in run.all_events if event.is_step_failure]
    reported = failure.step_failure_data.user_failure_data
    assert reported is not None
    assert "VECTORIZE_GALLERY__PATH" in (reported.description or "")
