"""Runs of the installed chart on a real control plane: where they run, and what becomes of them when they are ended.

All in one file, which has one cluster: the second test loses a node of it.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deploy.kubernetes.installation import NAMESPACE, Installation, before_the_run, until
from tests.small_corpus import DAYS, write_document
from vectorize_pipelines.runs.tags import OUT_OF_MEMORY_TAG
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores import open_store

if TYPE_CHECKING:
    from kubernetes.client import V1Pod

pytestmark = pytest.mark.timeout(600)

MIB = 1 << 20
_TERMINATE = """mutation Terminate($runId: String!) { terminateRun(runId: $runId) { __typename } }"""


def write_documents(installation: Installation, number: int, day: int) -> date:
    for count in range(number):
        name = f"{DAYS[day]}-{count}.md"
        write_document(installation.shared / "documents", name, f"# Lamp {count}\n\nIt burns paraffin.\n", day)
    return DAYS[day]


def rows(store_settings: StoreSettings, tmp_path: Path, day: date) -> int:
    return open_store(store_settings, tmp_path).count_by("corpus", "partition").get(day.isoformat(), 0)


def test_one_killed_for_memory_is_named_and_repeated_with_smaller_batches_where_the_gpus_are(
    installation: Installation, store_settings: StoreSettings, tmp_path: Path
) -> None:
    day = write_documents(installation, 3, day=0)
    memory = {"limits": {"memory": "1200Mi", "nvidia.com/gpu": "1"}, "requests": {"memory": "1Gi"}}
    tags = {
        "dagster/partition": day.isoformat(),
        "vectorize/queue": "image",  # whose pool has the GPUs
        # With 2048 items in a batch a GiB, with half of them half of one.
        "dagster-k8s/config": before_the_run("fill", MIB // 2, resources=memory),
    }
    killed = installation.launch("embed_corpus", tags)
    assert installation.finished(killed) == "FAILURE"
    said = "\n".join(installation.messages(killed))
    assert "was killed for its memory (OOMKilled): its container dagster had more than its limit of 1200Mi" in said

    repeated = installation.repeated(killed)
    assert installation.finished(repeated) == "SUCCESS", installation.cluster.logs()
    assert rows(store_settings, tmp_path, day) == 3
    pods = [installation.pod_of(each) for each in (killed, repeated)]
    assert [pod.spec.node_name for pod in pods] == ["gpu", "gpu"]
    first, second = ({each.name: each.value for each in pod.spec.containers[0].env} for pod in pods)
    assert "VECTORIZE_PIPELINE__BATCH_ITEMS" not in first
    assert second["VECTORIZE_PIPELINE__BATCH_ITEMS"] == "1024"
    assert second["VECTORIZE_ENCODER__TOKEN_BUDGET_SHARE"] == "0.5"
    (run,) = installation.runs(runIds=[repeated])
    assert {"key": OUT_OF_MEMORY_TAG, "value": killed} in run["tags"]


def test_one_evicted_drained_and_lost_with_its_node_is_named_and_goes_on_elsewhere(
    installation: Installation, store_settings: StoreSettings, tmp_path: Path
) -> None:
    day = write_documents(installation, 6, day=1)
    go_on = installation.shared / "go_on"
    one_at_a_time = [{"name": "VECTORIZE_PIPELINE__BATCH_ITEMS", "value": "1"}]
    tags = {
        "dagster/partition": day.isoformat(),
        "dagster-k8s/config": before_the_run("pause", go_on, env=one_at_a_time),
    }
    nodes = installation.cluster.nodes

    def drain(pod: "V1Pod") -> None:
        eviction = {"metadata": {"name": pod.metadata.name, "namespace": NAMESPACE}}
        installation.core.create_namespaced_pod_eviction(pod.metadata.name, NAMESPACE, eviction)

    def evict(pod: "V1Pod") -> None:
        nodes[pod.spec.node_name].evict(NAMESPACE, pod.metadata.name, "The node was low on resource: memory.")

    def lose(pod: "V1Pod") -> None:
        nodes[pod.spec.node_name].lose()

    run_id = installation.launch("embed_corpus", tags)
    run_id, _ = ended(installation, run_id, drain, "was evicted: its node is drained, or somebody asked for it")
    run_id, was_on = ended(installation, run_id, evict, "was evicted (Evicted): The node was low on resource: memory.")
    assert installation.pod_of(run_id).spec.node_name != was_on
    run_id, was_on = ended(installation, run_id, lose, "The run was lost: the machine {node} was lost")
    assert 3 <= rows(store_settings, tmp_path, day) < 6
    go_on.touch()
    assert installation.finished(run_id) == "SUCCESS", installation.cluster.logs()
    assert installation.pod_of(run_id).spec.node_name != was_on
    assert rows(store_settings, tmp_path, day) == 6


def test_a_run_ends_with_the_image_that_it_began_with_and_the_next_one_can_be_terminated(
    installation: Installation,
) -> None:
    shared, day = installation.shared, DAYS[2]
    go_on, paused = shared / "go_on", shared / "paused"
    tags = {"dagster/partition": day.isoformat(), "dagster-k8s/config": before_the_run("pause", go_on)}
    for file in (go_on, paused):
        file.unlink(missing_ok=True)
    write_document(shared / "documents", "before.md", "# Before\n\nIt burns paraffin.\n", 2)
    before = installation.launch("embed_corpus", tags)
    until("a batch of the first run", paused.exists, 120, installation.cluster)

    upgraded = replace(installation, values={**installation.values, "image": {"tag": "next"}})
    upgraded.install()
    go_on.touch()
    assert upgraded.finished(before) == "SUCCESS", upgraded.messages(before)
    assert upgraded.pod_of(before).spec.containers[0].image == "vectorize:cpu"

    for file in (go_on, paused):
        file.unlink()
    write_document(shared / "documents", "after.md", "# After\n\nIt burns gas.\n", 2)
    after = upgraded.launch("embed_corpus", tags)
    until("a batch of the second run", paused.exists, 120, installation.cluster)
    assert upgraded.pod_of(after).spec.containers[0].image == "vectorize:next"
    assert upgraded.graphql(_TERMINATE, runId=after)["__typename"] == "TerminateRunSuccess"
    assert upgraded.finished(after) == "CANCELED", upgraded.messages(after)


def ended(installation: Installation, run_id: str, end: "Callable[[V1Pod], None]", why: str) -> tuple[str, str]:
    """End a run's pod after a batch; return the run that repeats it, and the node where it was."""
    paused = installation.shared / "paused"
    until(f"a batch of run {run_id}", paused.exists, 120, installation.cluster)
    paused.unlink()
    pod = installation.pod_of(run_id)
    node: str = pod.spec.node_name
    end(pod)
    assert installation.finished(run_id) == "FAILURE"
    expected = why.format(node=node)

    def is_said() -> bool:
        return any(expected in message for message in installation.messages(run_id))

    until(f"run {run_id} to say: {expected}", is_said, 60, installation.cluster)
    return installation.repeated(run_id), node
