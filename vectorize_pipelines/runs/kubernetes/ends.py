"""Why the pod of a run ended, by what Kubernetes says of it; called by `launcher`, which reads the objects."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubernetes.client import V1ContainerState, V1ContainerStatus, V1Job, V1Pod

#: Of an exit code: the process was ended by the signal of the number above it.
_SIGNAL = 128
#: Reason of a pod's condition DisruptionTarget -> what happened.
_DISRUPTIONS = {
    "PreemptionByScheduler": "made room for a pod of higher priority",
    "DeletionByTaintManager": "was deleted because its node was lost, or refuses such pods now",
    "EvictionByEvictionAPI": "was evicted: its node is drained, or somebody asked for it",
    "DeletionByPodGC": "was deleted because its node is gone",
    "TerminationByKubelet": "was ended by its node, which was short of something or is shut down",
}


@dataclass(frozen=True, slots=True)
class PodEnd:
    """Why a pod ended. `reason` is Kubernetes' own name for it: OOMKilled, Evicted, …"""

    reason: str
    message: str

    @property
    def is_out_of_memory(self) -> bool:
        """Return whether the pod had more memory than its limit."""
        return self.reason == "OOMKilled"


def end_of(pods: Iterable["V1Pod"], job: "V1Job | None") -> PodEnd | None:
    """Return why the pods of a job ended; None where nothing says that one did.

    A pod that was evicted may be gone: then its job says so, if it has a `podFailurePolicy` for the condition
    DisruptionTarget, as those of the Helm chart have.
    """
    ends = [end for pod in pods for end in _of_pod(pod)]
    return next(iter(ends), None) or _of_job(job)


def _of_pod(pod: "V1Pod") -> Iterator[PodEnd]:
    """Return what a pod says, what tells most first."""
    pod_is = f"The pod {pod.metadata.name} on the node {pod.spec.node_name}"
    statuses = [*(pod.status.container_statuses or ()), *(pod.status.init_container_statuses or ())]
    for status in statuses:
        for state in (status.state, status.last_state):
            if _reason(state) == "OOMKilled":
                limit = _memory_limit(pod, status)
                yield PodEnd("OOMKilled", f"{pod_is} was killed for its memory (OOMKilled): {limit}.")
    if pod.status.reason == "Evicted":
        yield PodEnd("Evicted", f"{pod_is} was evicted (Evicted): {pod.status.message or 'its node did not say why'}")
    for condition in pod.status.conditions or ():
        if condition.type == "DisruptionTarget" and condition.status == "True":
            what = _DISRUPTIONS.get(condition.reason, "was ended by the cluster")
            said = f" Kubernetes says: {condition.message}" if condition.message else ""
            yield PodEnd(condition.reason, f"{pod_is} {what} ({condition.reason}).{said}")
    for status in statuses:
        ended = status.state and status.state.terminated
        if ended and ended.exit_code:
            code = ended.exit_code
            why = f"signal {code - _SIGNAL}" if code > _SIGNAL else f"exit code {code}"
            yield PodEnd(ended.reason or "Error", f"{pod_is} ended with {why}: its log may say more.")


def _reason(state: "V1ContainerState | None") -> str | None:
    return state.terminated.reason if state is not None and state.terminated is not None else None


def _memory_limit(pod: "V1Pod", status: "V1ContainerStatus") -> str:
    for container in (*pod.spec.containers, *(pod.spec.init_containers or ())):
        limits = (container.resources and container.resources.limits) or {}
        if container.name == status.name and "memory" in limits:
            return f"its container {status.name} had more than its limit of {limits['memory']}"
    return f"its container {status.name} has no limit, and its node had none left"


def _of_job(job: "V1Job | None") -> PodEnd | None:
    for condition in (job.status.conditions or ()) if job is not None else ():
        if condition.type == "Failed" and condition.status == "True" and condition.reason != "BackoffLimitExceeded":
            what = "was ended by the cluster"
            if "DisruptionTarget" in (condition.message or ""):
                what = "was evicted, made room for another one, or was deleted with its node"
            return PodEnd(condition.reason, f"The run's pod {what}, and is gone: {condition.message}.")
    return None
