"""Why a run's pod ended, by what Kubernetes says of it."""

from typing import Any

import pytest
from kubernetes import client

from vectorize_pipelines.runs.kubernetes.ends import end_of


def pod(
    *,
    ended: dict[str, Any] | None = None,
    conditions: tuple[dict[str, Any], ...] = (),
    limits: dict[str, str] | None = None,
    **status: Any,
) -> client.V1Pod:
    state = client.V1ContainerState(terminated=client.V1ContainerStateTerminated(**ended) if ended else None)
    container = client.V1Container(name="dagster", resources=client.V1ResourceRequirements(limits=limits))
    report = client.V1ContainerStatus(
        name="dagster", image="image", image_id="image", ready=False, restart_count=0, state=state
    )
    return client.V1Pod(
        metadata=client.V1ObjectMeta(name="run"),
        spec=client.V1PodSpec(containers=[container], node_name="node-1"),
        status=client.V1PodStatus(
            container_statuses=[report], conditions=[client.V1PodCondition(**each) for each in conditions], **status
        ),
    )


def job(**condition: str) -> client.V1Job:
    conditions = [client.V1JobCondition(type="Failed", status="True", **condition)] if condition else []
    return client.V1Job(status=client.V1JobStatus(conditions=conditions))


DISRUPTED = {"type": "DisruptionTarget", "status": "True"}


@pytest.mark.parametrize(
    ("found", "reason", "message"),
    [
        (
            pod(ended={"reason": "OOMKilled", "exit_code": 137}, limits={"memory": "2Gi"}),
            "OOMKilled",
            "The pod run on the node node-1 was killed for its memory (OOMKilled): its container dagster had more than "
            "its limit of 2Gi.",
        ),
        (pod(ended={"reason": "OOMKilled", "exit_code": 137}), "OOMKilled", "has no limit, and its node had none left"),
        (pod(reason="Evicted", message="low on memory"), "Evicted", "was evicted (Evicted): low on memory"),
        (
            pod(conditions=({**DISRUPTED, "reason": "DeletionByTaintManager"},)),
            "DeletionByTaintManager",
            "was deleted because its node was lost",
        ),
        (
            pod(conditions=({**DISRUPTED, "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"},)),
            "EvictionByEvictionAPI",
            "was evicted: its node is drained, or somebody asked for it (EvictionByEvictionAPI). Kubernetes says: ",
        ),
        (pod(conditions=({**DISRUPTED, "reason": "SomethingNew"},)), "SomethingNew", "was ended by the cluster"),
        (pod(ended={"reason": "Error", "exit_code": 139}), "Error", "ended with signal 11"),
        (pod(ended={"reason": "Error", "exit_code": 3}), "Error", "ended with exit code 3"),
        # A node that is short of memory evicts, and the pod's container is killed by that.
        (
            pod(reason="Evicted", message="low", ended={"reason": "Error", "exit_code": 137}),
            "Evicted",
            "was evicted (Evicted)",
        ),
    ],
)
def test_what_ended_a_pod_is_named(found: client.V1Pod, reason: str, message: str) -> None:
    end = end_of([found], job(reason="BackoffLimitExceeded", message="Job has reached the specified backoff limit"))
    assert end is not None
    assert end.reason == reason
    assert message in end.message
    assert end.is_out_of_memory is (reason == "OOMKilled")


def test_the_job_says_it_of_a_pod_that_is_gone() -> None:
    end = end_of([], job(reason="PodFailurePolicy", message="Pod a/run has condition DisruptionTarget"))
    assert end is not None
    assert (end.reason, "has condition DisruptionTarget" in end.message) == ("PodFailurePolicy", True)


@pytest.mark.parametrize(
    "found",
    [
        pod(),
        pod(ended={"reason": "Completed", "exit_code": 0}),
        pod(conditions=({"type": "DisruptionTarget", "status": "False", "reason": "PreemptionByScheduler"},)),
    ],
)
def test_of_one_that_runs_or_is_done_nothing_is_said(found: client.V1Pod) -> None:
    assert end_of([found], job()) is None
    assert end_of([], None) is None
    assert end_of([], job(reason="BackoffLimitExceeded", message="Job has reached the specified backoff limit")) is None
