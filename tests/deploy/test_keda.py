"""The scaling of workers in Kubernetes against the queues that there are, and what KEDA takes."""

from typing import Any

import pytest
import yaml

from tests.paths import CHECKOUT
from vectorize_pipelines.core.worker_queues import QUEUES, queue_key

#: What a trigger on a list of Redis has to name, and what it may say besides.
_NEEDED = {"address", "listName", "listLength"}
_TAKEN = _NEEDED | {"databaseIndex", "activationListLength", "enableTLS"}


def _documents() -> dict[str, dict[str, Any]]:
    """Return the objects of the file by their kind."""
    text = (CHECKOUT / "deploy" / "keda" / "scaledobject.yaml").read_text()
    found = {each["kind"]: each for each in yaml.safe_load_all(text)}
    assert found.keys() == {"TriggerAuthentication", "ScaledObject"}
    return found


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    found: dict[str, Any] = _documents()["ScaledObject"]["spec"]
    return found


def test_both_objects_are_of_keda_and_have_a_name() -> None:
    for each in _documents().values():
        assert each.keys() == {"apiVersion", "kind", "metadata", "spec"}
        assert each["apiVersion"] == "keda.sh/v1alpha1"
        assert each["metadata"]["name"]


def test_every_trigger_looks_at_the_list_of_a_queue(spec: dict[str, Any]) -> None:
    lists = {each["name"]: each["metadata"]["listName"] for each in spec["triggers"]}
    assert len(lists) == len(spec["triggers"])
    assert lists == {queue: queue_key(queue) for queue in QUEUES if queue != "gpu-large"}
    for each in spec["triggers"]:
        assert each["type"] == "redis"
        assert _NEEDED <= each["metadata"].keys() <= _TAKEN
        assert all(isinstance(value, str) for value in each["metadata"].values())  # KEDA refuses numbers
        assert int(each["metadata"]["listLength"]) >= 1


def test_every_trigger_has_the_password_that_is_there(spec: dict[str, Any]) -> None:
    authentication = _documents()["TriggerAuthentication"]
    names = {each["authenticationRef"]["name"] for each in spec["triggers"]}
    assert names == {authentication["metadata"]["name"]}
    assert [each["parameter"] for each in authentication["spec"]["secretTargetRef"]] == ["password"]


def test_a_busy_worker_is_not_taken_for_one_that_nobody_needs(spec: dict[str, Any]) -> None:
    assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] == 3600  # the most that Kubernetes takes
    assert all(each["periodSeconds"] <= 1800 for each in down["policies"])  # the most that Kubernetes takes
    assert spec["cooldownPeriod"] >= 3600
