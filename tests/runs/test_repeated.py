"""Runs that repeat others, as Dagster's automatic retries and its UI make them."""

import sys

from dagster._core.execution.plan.resume_retry import ReexecutionStrategy
from dagster._core.test_utils import in_process_test_workspace
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from vectorize_pipelines.core.request_runs import LOCATION
from vectorize_pipelines.definitions import defs
from vectorize_pipelines.partitions import today
from vectorize_pipelines.runs.instance import open_instance
from vectorize_pipelines.runs.tags import NEVER_BEGUN_TAG, SHARD_TAG, WIND_DOWN_TAG
from vectorize_pipelines.settings import Settings


def test_a_repeated_run_is_not_to_end_because_the_first_was(settings: Settings) -> None:
    origin = LoadableTargetOrigin(executable_path=sys.executable, module_name=LOCATION)
    told = {WIND_DOWN_TAG: "handing over to 2 runs", NEVER_BEGUN_TAG: "true"}
    with open_instance(settings) as instance, in_process_test_workspace(instance, origin) as workspace:
        (location,) = workspace.code_locations
        (repository,) = location.get_repositories().values()
        first = instance.create_run_for_job(
            defs.resolve_job_def("embed_text"), tags={"dagster/partition": today(), SHARD_TAG: "1/4", **told}
        )
        again = instance.create_reexecuted_run(
            request_context=workspace,
            parent_run=first,
            code_location=location,
            remote_job=repository.get_full_job("embed_text"),
            strategy=ReexecutionStrategy.ALL_STEPS,
            use_parent_run_tags=True,
        )
        assert again.parent_run_id == first.run_id
        assert again.tags[SHARD_TAG] == "1/4"
        assert not told.keys() & again.tags.keys()
