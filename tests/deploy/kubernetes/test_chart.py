"""The Helm chart as `helm` renders it: against its schema, the settings, the commands and the image."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.dockerfile import stages
from tests.deploy.kubernetes.installation import CHART
from tests.deploy.kubernetes.rendering import CELERY, EVERYTHING, LEAST, SCALED, of_kind, rendered
from tests.paths import CHECKOUT
from tests.servers.kubernetes.cluster import run_helm
from vectorize_pipelines.core.worker_queues import QUEUES
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.settings.loading import LEGACY_NAMES, PREFIX

pytestmark = pytest.mark.usefixtures("helm_program")

RELEASES = pytest.mark.parametrize(
    "values", [LEAST, EVERYTHING, CELERY, SCALED], ids=["least", "everything", "celery", "scaled"]
)


def instance(objects: list[dict[str, Any]]) -> dict[str, Any]:
    data = of_kind(objects, "ConfigMap")["release-vectorize-instance"]["data"]
    found: dict[str, Any] = yaml.safe_load(data["dagster.yaml"])
    return found


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pods = [each["spec"]["template"]["spec"] for each in of_kind(objects, "Deployment").values()]
    return [each for pod in pods for each in (*pod.get("initContainers", []), *pod["containers"])]


def scaled_worker(address: str = "", **worker: Any) -> dict[str, Any]:
    redis = {"secret": "redis", "address": address}
    return {**CELERY, "redis": redis, "workers": [{"name": "text", "queues": ["text"], **worker}]}


@RELEASES
def test_helm_finds_nothing_wrong(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    assert "0 chart(s) failed" in run_helm("lint", "--strict", str(CHART), "--values", str(file))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "/database/secret"),
        ({**LEAST, "runs": {"pools": {"texts": {}}}}, "texts"),
        ({**LEAST, "settings": {"MODEL": "x"}}, "invalid propertyName 'MODEL'"),
        ({**LEAST, "store": {"kind": "lancedb", "url": "/data"}}, "/store/url"),
        ({**LEAST, "runs": {"launcher": "celery"}}, "set redis.secret"),
        ({**LEAST, "workers": CELERY["workers"]}, "workers need runs.launcher: celery"),
        (scaled_worker(replicas=2, autoscaling={"maxReplicas": 2}), "worker text: autoscaling says how many"),
        (scaled_worker(autoscaling={"maxReplicas": 2}), "worker text: autoscaling needs redis.address, or prometheus"),
        (
            scaled_worker(address="redis:6379", autoscaling={"minReplicas": 0, "maxReplicas": 2}),
            "worker text: by the lists of Redis alone a busy worker looks idle",
        ),
        (
            scaled_worker(address="redis:6379", autoscaling={"minReplicas": 3, "maxReplicas": 2}),
            "worker text: autoscaling.minReplicas is more than maxReplicas",
        ),
        (scaled_worker(address="redis://redis:6379", autoscaling={"maxReplicas": 2}), "/redis/address"),
    ],
)
def test_what_is_missing_or_wrong_is_named(wrong: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=re.escape(said)):
        rendered(tmp_path, wrong)


@RELEASES
def test_settings_exist_and_no_secret_stands_in_them(values: dict[str, Any], tmp_path: Path) -> None:
    objects = rendered(tmp_path, values)
    assert "Secret" not in {each["kind"] for each in objects}
    settings = of_kind(objects, "ConfigMap")["release-vectorize-settings"]["data"]
    variables = {**stages()["runtime"].variables(), **settings}
    for container in containers(objects):
        given = {each["name"]: each for each in container["env"]}
        secret = {name for name, each in given.items() if "secretKeyRef" in each.get("valueFrom", {})}
        literal = {name: each["value"] for name, each in given.items() if "value" in each}
        variables |= {name: value for name, value in literal.items() if name.startswith(PREFIX)}
        assert "DAGSTER_DATABASE_URL" in secret
        # A name that is no setting is refused.
        redis = {name: "redis://redis" for name in secret if name == "VECTORIZE_REDIS__URL"}
        loaded = load_settings(
            {name: each for name, each in (variables | redis).items() if name.startswith(PREFIX)}, tmp_path
        )
        assert loaded.gateway.dagster_url == "http://release-vectorize-web:3000"
    assert not set(variables) & set(LEGACY_NAMES)
    assert "release-vectorize-gateway:8000" in load_settings(settings, tmp_path).gateway.hosts


@RELEASES
def test_pods_may_do_no_more_than_they_need(values: dict[str, Any], tmp_path: Path) -> None:
    objects = rendered(tmp_path, values)
    launched = values.get("runs", {}).get("launcher") != "celery"
    for name, deployment in of_kind(objects, "Deployment").items():
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsUser"] == int(stages()["runtime"].all("USER")[-1].split(":")[0])
        assert pod["automountServiceAccountToken"] is (launched and name.endswith(("-web", "-daemon", "-code")))
        assert pod["enableServiceLinks"] is False
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            mounted = {each["mountPath"] for each in container["volumeMounts"]}
            assert set(stages()["runtime"].listed("VOLUME")) <= mounted
            assert "memory" in container["resources"]["limits"]
    roles = of_kind(objects, "Role")
    assert bool(roles) is launched
    assert not of_kind(objects, "ClusterRole")
    resources = {resource for role in roles.values() for rule in role["rules"] for resource in rule["resources"]}
    assert resources <= {"jobs", "jobs/status", "pods", "pods/log", "events"}


def test_every_queue_has_a_pool(tmp_path: Path) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["definitions"]["queue"]["enum"]) == set(QUEUES)
    launcher = instance(rendered(tmp_path, EVERYTHING))["run_launcher"]["config"]
    assert set(launcher["pools"]) == set(QUEUES)
    image = launcher["pools"]["image"]
    assert image["container_config"]["image"] == "vectorize:cuda"
    assert image["container_config"]["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "2"}
    assert image["pod_spec_config"]["nodeSelector"] == {"gpu": "yes"}
    assert [each["key"] for each in image["pod_spec_config"]["tolerations"]] == ["nvidia.com/gpu"]
    assert launcher["pools"]["text"]["container_config"]["resources"]["limits"] == {"memory": "4Gi"}


def test_the_instance_is_that_of_deploy(tmp_path: Path) -> None:
    found = instance(rendered(tmp_path, LEAST))
    assert found.pop("run_launcher")["class"] == "PooledK8sRunLauncher"
    assert found.pop("compute_logs")["class"] == "NoOpComputeLogManager"
    assert found == yaml.safe_load((CHECKOUT / "deploy" / "dagster.yaml").read_text())
    laid_over = instance(rendered(tmp_path, EVERYTHING))["concurrency"]
    assert laid_over["runs"]["max_concurrent_runs"] == 3
    assert laid_over["pools"] == found["concurrency"]["pools"]
    assert "run_launcher" not in instance(rendered(tmp_path, CELERY))


def test_there_is_one_daemon_and_a_budget_where_there_are_several(tmp_path: Path) -> None:
    objects = rendered(tmp_path, EVERYTHING)
    daemon = of_kind(objects, "Deployment")["release-vectorize-daemon"]["spec"]
    assert (daemon["replicas"], daemon["strategy"]) == (1, {"type": "Recreate"})
    assert set(of_kind(objects, "PodDisruptionBudget")) == {"release-vectorize-gateway"}
    assert set(of_kind(rendered(tmp_path, CELERY), "PodDisruptionBudget")) == {"release-vectorize-worker-text"}


def test_workers_take_their_queues(tmp_path: Path) -> None:
    deployments = of_kind(rendered(tmp_path, CELERY), "Deployment")
    (text,) = deployments["release-vectorize-worker-text"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "VECTORIZE_WORKER__QUEUES", "value": "text,document"} in text["env"]
    gpu = deployments["release-vectorize-worker-gpu"]["spec"]["template"]["spec"]
    assert gpu["containers"][0]["image"] == "vectorize:cuda"
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert gpu["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_every_service_finds_its_pods_and_their_ports(tmp_path: Path) -> None:
    objects = rendered(tmp_path, EVERYTHING)
    templates = [each["spec"]["template"] for each in of_kind(objects, "Deployment").values()]
    for service in of_kind(objects, "Service").values():
        selector = service["spec"]["selector"].items()
        (pod,) = [each for each in templates if selector <= each["metadata"]["labels"].items()]
        named = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named
