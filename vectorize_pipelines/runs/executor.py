"""The executor of all jobs: their steps in the run's own process, which holds the run's lease meanwhile.

Every run that Dagster launches begins and ends here. Those of `vectorize ingest`, which Dagster executes without the
jobs' executor, hold theirs by `runs.held`.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from vectorize_pipelines.compat import ExecutionPlan, PlanOrchestrationContext, RetryMode, StepDependencyConfig
from vectorize_pipelines.runs.held import is_shared, leased
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.held_locks import LockLostError

#: That of Dagster's executor; of no type that the decorator knows.
CONFIG: Any = dg.in_process_executor.config_schema


class LeasedExecutor(dg.Executor):
    """An executor of one process, within the lease of its run where several machines share the database."""

    def __init__(self, inner: dg.Executor):
        self._inner = inner

    @property
    def retries(self) -> RetryMode:
        """As Dagster asks for it."""
        return self._inner.retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        """As Dagster asks for it."""
        return self._inner.step_dependency_config

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        """Execute the steps.

        A lost lease is an error of the run, not of a step, after which Dagster starts the run again, unless it has done
        so already, when the run was declared lost.
        """
        settings = load_settings()
        if not is_shared(settings):
            yield from self._inner.execute(plan_context, execution_plan)
            return
        try:
            with leased(settings, plan_context.run_id):
                _stay_if_declared_lost(plan_context)
                yield from self._inner.execute(plan_context, execution_plan)
        except LockLostError:
            _stay_if_declared_lost(plan_context)
            raise


def _stay_if_declared_lost(plan_context: PlanOrchestrationContext) -> None:
    """Leave a run that has ended as it is: an interrupt adds no failure to it."""
    run = plan_context.instance.get_run_by_id(plan_context.run_id)
    if run is None or run.is_finished:
        raise dg.DagsterExecutionInterruptedError


@dg.executor(name=dg.in_process_executor.name, config_schema=CONFIG)
def in_process_executor(context: dg.InitExecutorContext) -> dg.Executor:
    """Execute the steps in the run's process: one of its own for every step would load the model anew for each."""
    create: Any = dg.in_process_executor.executor_creation_fn
    inner: dg.Executor = create(context)
    return LeasedExecutor(inner)
