"""The scaling of workers by KEDA as the chart renders it: against the queues that there are, and KEDA's own kinds."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.components import missing
from tests.deploy.kubernetes.rendering import SCALED, of_kind, rendered
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.kubernetes.programs import keda
from tests.servers.packages import UnavailableError
from vectorize_pipelines.core.worker_queues import QUEUES, queue_key

pytestmark = pytest.mark.usefixtures("helm_program")

GROUP, VERSION = "keda.sh", "v1alpha1"
#: In a scaler's source: the names of a field, and where KEDA looks for it.
_FIELD = re.compile(r'keda:"name=([\w;]+),\s*order=([\w;]+)')


@pytest.fixture(scope="session")
def keda_source() -> Path:
    try:
        return keda()
    except UnavailableError as error:
        missing(str(error))


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return rendered(tmp_path_factory.mktemp("values"), SCALED)


@pytest.fixture(scope="module")
def scaled(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is said of each worker that is scaled."""
    found = of_kind(objects, "ScaledObject")
    return {name.removeprefix("release-vectorize-worker-"): each["spec"] for name, each in found.items()}


def test_workers_that_are_scaled_have_no_number_of_their_own(
    objects: list[dict[str, Any]], scaled: dict[str, dict[str, Any]]
) -> None:
    deployments = of_kind(objects, "Deployment")
    assert set(scaled) == {"all", "seen"}
    for spec in scaled.values():
        assert "replicas" not in deployments[spec["scaleTargetRef"]["name"]]["spec"]
    assert deployments["release-vectorize-worker-fixed"]["spec"]["replicas"] == 2
    assert set(of_kind(objects, "PodDisruptionBudget")) == {
        f"release-vectorize-worker-{name}" for name in ("all", "seen", "fixed")
    }


def test_there_is_a_trigger_for_the_list_of_each_queue(scaled: dict[str, dict[str, Any]]) -> None:
    triggers = scaled["all"]["triggers"]
    assert {each["name"]: each["metadata"]["listName"] for each in triggers} == {
        queue: queue_key(queue) for queue in QUEUES
    }
    for each in triggers:
        assert each["metadata"] | {"listName": ""} == {
            "address": "redis:6379",
            "databaseIndex": "2",
            "enableTLS": "true",
            "username": "keda",
            "listName": "",
            "listLength": "1",
        }


def test_the_password_is_that_of_the_secret(
    objects: list[dict[str, Any]], scaled: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    (name,) = {each["authenticationRef"]["name"] for each in scaled["all"]["triggers"]}
    authentication = of_kind(objects, "TriggerAuthentication")
    assert authentication[name]["spec"] == {
        "secretTargetRef": [{"parameter": "password", "name": "redis", "key": "password"}]
    }
    open_to_all = rendered(tmp_path, {**SCALED, "redis": {"secret": "redis", "address": "redis:6379"}})
    assert not of_kind(open_to_all, "TriggerAuthentication")
    for each in of_kind(open_to_all, "ScaledObject").values():
        assert not any("authenticationRef" in trigger for trigger in each["spec"]["triggers"])


def test_one_trigger_has_the_figure_of_all_queues_of_a_worker(scaled: dict[str, dict[str, Any]]) -> None:
    (trigger,) = scaled["seen"]["triggers"]
    assert trigger["metadata"] == {
        "serverAddress": "http://prometheus:9090",
        # Several gateways tell the same figure, which is not to be added up.
        "query": 'sum(max by (queue, state) (vectorize_worker_runs{queue=~"text|gpu-large"}))',
        "threshold": "3",
    }


def test_a_busy_worker_is_not_taken_for_one_that_nobody_needs(scaled: dict[str, dict[str, Any]]) -> None:
    assert (scaled["all"]["minReplicaCount"], scaled["all"]["maxReplicaCount"]) == (1, 8)
    assert (scaled["seen"]["minReplicaCount"], scaled["seen"]["maxReplicaCount"]) == (0, 2)
    for spec in scaled.values():
        down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        assert down["stabilizationWindowSeconds"] == 3600  # the most that Kubernetes takes
        assert all(each["periodSeconds"] <= 1800 for each in down["policies"])  # the most that Kubernetes takes
        assert spec["cooldownPeriod"] >= 3600


def test_a_trigger_says_only_what_its_scaler_takes(scaled: dict[str, dict[str, Any]], keda_source: Path) -> None:
    for trigger in (each for spec in scaled.values() for each in spec["triggers"]):
        source = (keda_source / f"{trigger['type']}_scaler.go").read_text()
        fields = [(names.split(";"), places) for names, places in _FIELD.findall(source)]
        taken = {name for names, places in fields if "triggerMetadata" in places for name in names}
        assert trigger["metadata"].keys() <= taken
        assert all(isinstance(value, str) for value in trigger["metadata"].values())  # KEDA refuses numbers


def test_an_api_server_with_kedas_kinds_takes_them(
    objects: list[dict[str, Any]], kubernetes_cluster: Cluster, keda_source: Path
) -> None:
    from kubernetes import client

    api = kubernetes_cluster.client()
    extensions, custom = client.ApiextensionsV1Api(api), client.CustomObjectsApi(api)
    kinds = [yaml.safe_load(file.read_text()) for file in sorted(keda_source.glob("*.yaml"))]
    for kind in kinds:
        extensions.create_custom_resource_definition(kind)
        kubernetes_cluster.until_established(kind["metadata"]["name"])
    plurals = {kind["spec"]["names"]["kind"]: kind["spec"]["names"]["plural"] for kind in kinds}
    sent = [each for each in objects if each["kind"] in plurals]
    assert {each["kind"] for each in sent} == set(plurals)
    for each in sent:
        made = custom.create_namespaced_custom_object(
            GROUP, VERSION, "default", plurals[each["kind"]], each, dry_run="All", field_validation="Strict"
        )
        assert made["spec"] == each["spec"]
