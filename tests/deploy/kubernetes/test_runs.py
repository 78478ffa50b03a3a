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
#: Items in a batch of the runs that are ended after one, so that each leaves some to the next.
BATCH = 4
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
    assert second["VECTORIZE_KAFKA__DRAIN__BATCH_MESSAGES"] == "2000"
    assert second["VECTORIZE_ENCODER__TOKEN_BUDGET_SHARE"] == "0.5"
    (run,) = installation.runs(runIds=[repeated])
    assert {"key": OUT_OF_MEMORY_TAG, "value": killed} in run["tags"]


def test_one_drained_and_lost_with_its_node_goes_on_elsewhere_during_an_upgrade_too(
    installation: Installation, store_settings: StoreSettings, tmp_path: Path
) -> None:
    number = 10 * BATCH
    day = write_documents(installation, number, day=1)
    go_on = installation.shared / "go_on"
    small = [{"name": "VECTORIZE_PIPELINE__BATCH_ITEMS", "value": str(BATCH)}]
    tags = {
        "dagster/partition": day.isoformat(),
        "dagster-k8s/config": before_the_run("pause", go_on, env=small),
    }

    def drain(pod: "V1Pod") -> None:
        eviction = {"metadata": {"name": pod.metadata.name, "namespace": NAMESPACE}}
        installation.core.create_namespaced_pod_eviction(pod.metadata.name, NAMESPACE, eviction)

    def lose(pod: "V1Pod") -> None:
        installation.cluster.nodes[pod.spec.node_name].lose()

    run_id = installation.launch("embed_corpus", tags)
    run_id, _ = ended(installation, run_id, drain, "was evicted")
    run_id, was_on = ended(installation, run_id, lose, "The run was lost: the machine {node} was lost")
    pod = installation.paused(run_id)
    assert pod.spec.node_name != was_on
    assert 0 < rows(store_settings, tmp_path, day) < number

    upgraded = replace(installation, values={**installation.values, "image": {"tag": "next"}})
    upgraded.install()
    go_on.touch()
    assert upgraded.finished(run_id) == "SUCCESS", installation.cluster.logs()
    assert pod.spec.containers[0].image == "vectorize:cpu"
    assert rows(store_settings, tmp_path, day) == number

    go_on.unlink()
    write_documents(installation, 1, day=2)
    run_id = upgraded.launch("embed_corpus", tags | {"dagster/partition": DAYS[2].isoformat()})
    assert installation.paused(run_id).spec.containers[0].image == "vectorize:next"
    assert upgraded.graphql(_TERMINATE, runId=run_id)["__typename"] == "TerminateRunSuccess"
    assert upgraded.finished(run_id) == "CANCELED", upgraded.messages(run_id)


def ended(installation: Installation, run_id: str, end: "Callable[[V1Pod], None]", why: str) -> tuple[str, str]:
    """End a run's pod after a batch; return the run that repeats it, and the node where it was."""
    pod = installation.paused(run_id)
    node: str = pod.spec.node_name
    end(pod)
    assert installation.finished(run_id) == "FAILURE"
    expected = why.format(node=node)

    def is_said() -> bool:
        return any(expected in message for message in installation.messages(run_id))

    until(f"run {run_id} to say: {expected}", is_said, 60, installation.cluster)
    return installation.repeated(run_id), node
