"""Which queue a run waits in."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_runs import JOB, OP
from vectorize_pipelines.core.worker_queues import GENERAL, QUEUES
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.jobs import ASSESSMENT_JOBS, REQUEST_JOBS
from vectorize_pipelines.runs.tags import QUEUE_TAG

_OF_JOBS = {
    "embed_corpus": "document",
    "embed_gallery": "image",
    **{each.job.name: modality.value for modality, each in REQUEST_JOBS.items()},
    **{each.job.name: "assessment" for each in ASSESSMENT_JOBS},
}
_OF_ASSETS = {
    "corpus_embeddings": "document",
    "gallery_embeddings": "image",
    **{each.asset: modality.value for modality, each in REQUEST_JOBS.items()},
    **{each.asset: "assessment" for each in ASSESSMENT_JOBS},
}


def queue_of(run: dg.DagsterRun) -> str:
    """Return the queue of a run: that of its tag, else that of its job or assets. Raises `SettingsError`."""
    named = run.tags.get(QUEUE_TAG)
    if named is not None:
        if named not in QUEUES:
            raise SettingsError(f"the tag {QUEUE_TAG} of run {run.run_id} is {named!r}, not one of {', '.join(QUEUES)}")
        return named
    if run.job_name == JOB:
        return _of_request(run)
    if run.job_name in _OF_JOBS:
        return _OF_JOBS[run.job_name]
    # A run that somebody asked for by its assets, or a backfill, has a job without a name of its own.
    assets = {_OF_ASSETS.get(key.to_user_string()) for key in run.asset_selection or ()}
    return assets.pop() or GENERAL if len(assets) == 1 else GENERAL


def _of_request(run: dg.DagsterRun) -> str:
    """Return the queue of a single request; one whose kind nobody knows fails wherever it runs."""
    config: Any = run.run_config
    for name in ("ops", OP, "config", "task_type"):
        config = config.get(name) if isinstance(config, Mapping) else None
    kind = str(config).removesuffix("_vectorization")
    return kind if kind in {each.value for each in Modality} else Modality.TEXT.value
