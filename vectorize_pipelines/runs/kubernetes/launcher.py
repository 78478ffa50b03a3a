"""The launcher that makes each run a job of Kubernetes: dagster-k8s's, with pools of nodes and ends that have a name.

`dagster.yaml` of the Helm chart (deploy/helm) names it. What dagster-k8s's own does otherwise: every run gets the same
resources unless its tags say something else; a run whose pod was killed for its memory, evicted or lost says only that
its job has no active pods, and is started again as it was; and a run whose job cannot be read is taken for dead.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import dagster as dg
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import UserDefinedDagsterK8sConfig, get_job_name_from_run_id
from dagster_k8s.launcher import K8sRunLauncher
from kubernetes.client import ApiException
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from vectorize_pipelines.compat import CheckRunHealthResult, ConfigurableClassData, WorkerStatus
from vectorize_pipelines.core.worker_queues import QUEUES
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.runs.held import is_leased
from vectorize_pipelines.runs.kubernetes.ends import PodEnd, end_of
from vectorize_pipelines.runs.tags import OUT_OF_MEMORY_TAG
from vectorize_pipelines.runs.workers.routing import queue_of
from vectorize_pipelines.settings import load_settings

if TYPE_CHECKING:
    from dagster._config import UserConfigSchema

logger = logging.getLogger(__name__)

_HOST = "kubernetes.io/hostname"
#: It refuses, has no such object, or is away: a run is marked as lost all the same.
_UNANSWERED = (ApiException, HTTPError)


class PooledK8sRunLauncher(K8sRunLauncher):
    """Launches each run as a job in the pool of its kind, and names what ended its pod.

    Configured in dagster.yaml as `K8sRunLauncher`, and by `pools`: queue of `core.worker_queues` -> what Dagster's
    `run_k8s_config` may say: resources, node selectors, tolerations. What the launcher itself is configured with, and a
    run's tag `dagster-k8s/config`, win.
    """

    def __init__(self, pools: Mapping[str, Mapping[str, Any]], **options: Any):
        """Raises `SettingsError` for the pool of a queue that there is not, and where Kubernetes lets nobody in."""
        unknown = sorted(set(pools) - set(QUEUES))
        if unknown:
            raise SettingsError(f"run_launcher: pools has {', '.join(unknown)}; a pool is one of {', '.join(QUEUES)}")
        self._pools = {queue: UserDefinedDagsterK8sConfig(**each) for queue, each in pools.items()}
        try:
            super().__init__(**options)
        except ConfigException as error:
            raise SettingsError(
                f"run_launcher: Kubernetes cannot be asked here ({error}): its launcher works in pods of its service "
                "accounts, such as those of daemon, web server and code location"
            ) from None

    @classmethod
    def config_type(cls) -> "UserConfigSchema":
        """Return what dagster.yaml may say. Called by Dagster."""
        inherited: Any = super().config_type()  # type: ignore[no-untyped-call]
        config = inherited["run_k8s_config"].config_type
        return {**inherited, "pools": dg.Field(dg.Map(str, config), default_value={}, is_required=False)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """Return the launcher. Called by Dagster."""
        return cls(inst_data=inst_data, **config_value)

    @property
    def supports_resume_run(self) -> bool:
        """Return that a run is repeated, not resumed: its executor has no processes that could have gone on."""
        return False

    def get_container_context_for_run(self, dagster_run: dg.DagsterRun) -> K8sContainerContext:
        """Return what is asked of Kubernetes for a run. Raises `SettingsError` where its tags name no queue.

        Only for a run that is just launched is Kubernetes asked where the one that it repeats was: each time that a
        run's health is checked, Dagster calls this for the namespace alone.
        """
        pool = self._pools.get(queue_of(dagster_run), UserDefinedDagsterK8sConfig())
        context = K8sContainerContext(run_k8s_config=pool).merge(super().get_container_context_for_run(dagster_run))
        if dagster_run.status is not dg.DagsterRunStatus.STARTING:
            return context
        return context.merge(K8sContainerContext(run_k8s_config=self._of_repeated(dagster_run, context.namespace)))

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return whether a run's pod is at work, and if not, why. Called by Dagster's run monitoring.

        A run whose job cannot be read is at work while its process renews the run's lease.
        """
        found: CheckRunHealthResult = super().check_run_worker_health(run)
        if found.status == WorkerStatus.UNKNOWN and is_leased(load_settings(), run.run_id):
            return CheckRunHealthResult(WorkerStatus.RUNNING, found.msg)
        if found.status == WorkerStatus.FAILED:
            return CheckRunHealthResult(WorkerStatus.FAILED, self.explain_end(run) or found.msg)
        return found

    def explain_end(self, run: dg.DagsterRun) -> str | None:
        """Return why a run's pod ended, and note on the run where that was for its memory; None where nobody knows.

        Called before the run is marked as failed, so that the next one, which gets its tags, takes smaller batches.
        """
        end = self._end_of(run)
        if end is None:
            return None
        if end.is_out_of_memory:
            killed = dict.fromkeys([*_killed_for_memory(run), run.run_id])
            self._instance.add_run_tags(run.run_id, {OUT_OF_MEMORY_TAG: ",".join(killed)})
        return end.message

    def _end_of(self, run: dg.DagsterRun) -> PodEnd | None:
        namespace = self.get_container_context_for_run(run).namespace
        name = _job_of(run.run_id)
        try:
            pods = self._api_client.get_pods_in_job(name, namespace)
            job = self._api_client.batch_api.read_namespaced_job(name, namespace)
        except _UNANSWERED as error:
            logger.warning("Kubernetes does not say how the job %s ended: %s", name, _said(error))
            return None
        return end_of(pods, job)

    def _of_repeated(self, run: dg.DagsterRun, namespace: str | None) -> UserDefinedDagsterK8sConfig:
        """Return what a run gets because of those that it repeats: another node, and smaller batches."""
        times = len(_killed_for_memory(run))
        settings = load_settings()
        smaller = {
            "VECTORIZE_ENCODER__TOKEN_BUDGET_SHARE": settings.encoder.token_budget_share / 2**times,
            "VECTORIZE_PIPELINE__BATCH_ITEMS": max(1, settings.pipeline.batch_items // 2**times),
            "VECTORIZE_KAFKA__DRAIN__BATCH_MESSAGES": max(1, settings.kafka.drain.batch_messages // 2**times),
        }
        env = [{"name": name, "value": str(value)} for name, value in smaller.items()] if times else []
        nodes = self._nodes_of(run.parent_run_id, namespace) if run.parent_run_id is not None else []
        return UserDefinedDagsterK8sConfig(
            container_config={"env": env} if env else {},
            pod_spec_config={"affinity": _elsewhere(nodes)} if nodes else {},
        )

    def _nodes_of(self, run_id: str, namespace: str | None) -> list[str]:
        try:
            pods = self._api_client.get_pods_in_job(_job_of(run_id), namespace)
        except _UNANSWERED as error:
            logger.warning("Kubernetes does not say where the run %s was: %s", run_id, _said(error))
            return []
        return sorted({pod.spec.node_name for pod in pods if pod.spec.node_name})


def _job_of(run_id: str) -> str:
    name: Any = get_job_name_from_run_id
    return str(name(run_id))


def _said(error: Exception) -> str:
    return f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error)


def _killed_for_memory(run: dg.DagsterRun) -> list[str]:
    """Return the runs that were killed for their memory: a run itself, and those that it repeats."""
    return [each for each in run.tags.get(OUT_OF_MEMORY_TAG, "").split(",") if each]


def _elsewhere(nodes: list[str]) -> dict[str, Any]:
    """Return the wish for other nodes: one that was lost looks well for a minute, others were too small or too full."""
    expression = {"key": _HOST, "operator": "NotIn", "values": nodes}
    preference = {"weight": 100, "preference": {"match_expressions": [expression]}}
    return {"node_affinity": {"preferred_during_scheduling_ignored_during_execution": [preference]}}
