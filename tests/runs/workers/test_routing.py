"""Each run waits in the queue of its kind."""

from typing import Any

import dagster as dg
import pytest

from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.runs.workers.routing import queue_of


def run(job: str, **given: Any) -> dg.DagsterRun:
    return dg.DagsterRun(job_name=job, **given)


def request(task_type: object) -> dg.DagsterRun:
    return run("embed_request", run_config={"ops": {"request": {"config": {"task_type": task_type}}}})


@pytest.mark.parametrize(
    ("launched", "queue"),
    [
        (run("embed_corpus"), "document"),
        (run("embed_gallery"), "image"),
        (run("embed_text"), "text"),
        (run("embed_image"), "image"),
        (run("embed_document"), "document"),
        (run("assess_risks"), "assessment"),
        (run("make_assessment_tasks"), "assessment"),
        (run("maintain_collections"), "general"),
        (run("reembed_collection"), "general"),
        (request("image_vectorization"), "image"),
        (request("batch_vectorization"), "text"),
        (request(["no", "kind"]), "text"),
        (run("embed_request"), "text"),
        (run("embed_text", tags={"vectorize/queue": "gpu-large"}), "gpu-large"),
        (run("__ASSET_JOB", asset_selection=frozenset([dg.AssetKey("gallery_embeddings")])), "image"),
        (run("__ASSET_JOB", asset_selection=frozenset([dg.AssetKey("reembedding")])), "general"),
        (
            run(
                "__ASSET_JOB", asset_selection=frozenset(map(dg.AssetKey, ["gallery_embeddings", "corpus_embeddings"]))
            ),
            "general",
        ),
    ],
)
def test_the_queue_of_a_run(launched: dg.DagsterRun, queue: str) -> None:
    assert queue_of(launched) == queue


def test_a_queue_that_no_worker_knows_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"gpu-lage.*text, image"):
        queue_of(run("embed_text", tags={"vectorize/queue": "gpu-lage"}))
