"""A run in a process of its own, for tests that kill and stop it: `python -m tests.runs.leased_run SECONDS`

The installation is that of the environment; a lease lasts for `SECONDS`. The run's one step says its id, waits for a
line, and writes the file `written` in the home, if it still may.
"""

import sys
from pathlib import Path

import dagster as dg

from vectorize_pipelines.runs.executor import in_process_executor
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.runs.instance import open_instance
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state import leases
from vectorize_pipelines.state.held_locks import check_run

WRITTEN = "written"


@dg.op(retry_policy=dg.RetryPolicy(max_retries=2), out=dg.Out(dg.Nothing))
def write(context: dg.OpExecutionContext) -> None:
    """Write at a sign."""
    print(context.run_id, flush=True)
    sys.stdin.readline()
    with translate_errors():
        check_run()
        Path(load_settings().home, WRITTEN).touch()


@dg.job(executor_def=in_process_executor)
def writing() -> None:
    """The job of the run."""
    write()


def main(seconds: str) -> None:
    """Execute the run."""
    leases.LEASE_SECONDS = float(seconds)
    with open_instance(load_settings()) as instance:
        dg.execute_job(dg.reconstructable(writing), instance)


if __name__ == "__main__":
    from tests.runs import leased_run  # a run's job is found by the name of its module

    leased_run.main(*sys.argv[1:])
