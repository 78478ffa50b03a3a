"""Runs of the assets from files, in the test's process."""

from typing import Any

import dagster as dg

from tests.small_corpus import TODAY


def run(
    instance: dg.DagsterInstance, job: str = "embed_corpus", first: str = TODAY, last: str = "", **config: Any
) -> dg.ExecuteInProcessResult:
    from vectorize_pipelines.definitions import defs

    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last or first}
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance,
        tags=tags,
        run_config={"ops": {"corpus_embeddings": {"config": config}}} if config else None,
        raise_on_error=False,
    )
