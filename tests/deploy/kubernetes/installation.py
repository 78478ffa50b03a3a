"""The chart, installed on a cluster of tests: what the tests ask of it, and of the cluster."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
import yaml

from tests.deploy.dockerfile import stages
from tests.paths import CHECKOUT
from tests.servers.kubernetes.cluster import Cluster
from tests.servers.kubernetes.images import Image

if TYPE_CHECKING:
    from kubernetes.client import V1Pod

CHART = CHECKOUT / "deploy" / "helm" / "vectorize"
NAMESPACE = "vectors"
RELEASE = "vectorize"
LOCATION = "vectorize_pipelines.definitions"
_LAUNCH = """mutation Launch($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_RUNS = """query Runs($filter: RunsFilter!) { runsOrError(filter: $filter) {
  ... on Runs { results { runId status parentRunId tags { key value } } } } }"""
_EVENTS = """query Events($runId: ID!) { logsForRun(runId: $runId) {
  ... on EventConnection { events { __typename ... on MessageEvent { message } } } } }"""
_BACKFILL = """mutation Backfill($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
_BACKFILL_STATUS = """query Backfill($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status } } }"""
_LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } } }"""
FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}


def image(*folders: Path) -> Image:
    """Return what stands for the image of deploy/docker: its variables, and this environment's programs."""
    import sys

    variables = stages()["runtime"].variables()
    variables["PATH"] = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    variables |= {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    installed = (CHECKOUT, Path(sys.prefix), Path(sys.base_prefix))
    return Image(variables, stages()["runtime"].all("WORKDIR")[-1], (*installed, *folders))


def until(what: str, look: Callable[[], Any], seconds: float, cluster: Cluster) -> Any:
    """Return what `look` returns once that is something; an error has the logs of all pods."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}\n{cluster.logs()}"
        time.sleep(0.25)
    return found


@dataclass
class Installation:
    """A release of the chart in the namespace `NAMESPACE`."""

    cluster: Cluster
    values: Mapping[str, Any]
    token: str
    #: Seen by all pods, at its own path.
    shared: Path
    #: The broker's address, for pods and for this machine.
    bootstrap_servers: str

    def __post_init__(self) -> None:
        from kubernetes import client

        api = self.cluster.client()
        self.core = client.CoreV1Api(api)
        self.apps = client.AppsV1Api(api)
        self.batch = client.BatchV1Api(api)

    def install(self) -> None:
        """Install the chart, or bring the release to other values, and wait until every Deployment is available."""
        file = self.shared / "values.yaml"
        file.write_text(yaml.safe_dump(dict(self.values)))
        self.cluster.helm("upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--values", str(file))
        until("all Deployments to be available", self._is_available, 150, self.cluster)
        until("Dagster behind the gateway", self._answers, 60, self.cluster)

    def pods(self, **labels: str) -> "list[V1Pod]":
        """Return the pods with these labels; `_` stands for the prefix app.kubernetes.io/."""
        selector = ",".join(f"app.kubernetes.io/{name}={value}" for name, value in labels.items())
        return list(self.core.list_namespaced_pod(NAMESPACE, label_selector=selector).items)

    def graphql(self, query: str, **variables: Any) -> Any:
        """Ask Dagster as its UI does: through the gateway."""
        content = self._ask("POST", "/dagster/graphql", json={"query": query, "variables": variables}).json()
        assert "errors" not in content, content["errors"]
        (result,) = content["data"].values()
        return result

    def get(self, path: str, accept: str = "application/json") -> str:
        """Return what the gateway answers to a GET."""
        return str(self._ask("GET", path, headers={"Accept": accept}).text)

    def launch(self, job: str, tags: Mapping[str, str]) -> str:
        """Launch a run as the UI does; return its id."""
        params = {
            "selector": {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "jobName": job},
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": name, "value": value} for name, value in tags.items()]},
        }
        answer = self.graphql(_LAUNCH, params=params)
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def backfill(self, asset: str, days: Iterable[str], config: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        """Launch a backfill of an asset as the UI does; return its id."""
        params = {
            "assetSelection": [{"path": [asset]}],
            "partitionNames": list(days),
            "runConfigData": dict(config),
            "tags": [{"key": name, "value": value} for name, value in tags.items()],
        }
        answer = self.graphql(_BACKFILL, params=params)
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        return str(answer["backfillId"])

    def run_of_backfill(self, backfill_id: str) -> str:
        """Wait for the first run of a backfill; return its id."""

        def look() -> str | None:
            tags = [{"key": "dagster/backfill", "value": backfill_id}]
            return next((str(run["runId"]) for run in self.runs(tags=tags)), None)

        return str(until(f"a run of backfill {backfill_id}", look, 120, self.cluster))

    def finished_backfill(self, backfill_id: str, seconds: float = 120) -> str:
        """Wait for the end of a backfill; return its state."""

        def look() -> str | None:
            status = str(self.graphql(_BACKFILL_STATUS, id=backfill_id)["status"])
            return status if status.startswith(("COMPLETED", "CANCELED", "FAILED")) else None

        return str(until(f"the end of backfill {backfill_id}", look, seconds, self.cluster))

    def runs(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return runs by a filter of GraphQL's."""
        found: list[dict[str, Any]] = self.graphql(_RUNS, filter=wanted)["results"]
        return found

    def status(self, run_id: str) -> str:
        """Return a run's state."""
        (run,) = self.runs(runIds=[run_id])
        return str(run["status"])

    def finished(self, run_id: str, seconds: float = 120) -> str:
        """Wait for the end of a run; return its state."""

        def look() -> str | None:
            status = self.status(run_id)
            return status if status in FINISHED else None

        return str(until(f"the end of run {run_id}", look, seconds, self.cluster))

    def repeated(self, run_id: str, seconds: float = 120) -> str:
        """Wait for the run that repeats another one; return its id."""

        def look() -> str | None:
            tags = [{"key": "dagster/parent_run_id", "value": run_id}]
            return next((str(run["runId"]) for run in self.runs(tags=tags)), None)

        return str(until(f"a run that repeats {run_id}", look, seconds, self.cluster))

    def messages(self, run_id: str) -> list[str]:
        """Return what the events of a run say."""
        return [each.get("message") or "" for each in self.graphql(_EVENTS, runId=run_id)["events"]]

    def pod_of(self, run_id: str, seconds: float = 60) -> "V1Pod":
        """Wait for a run's pod to be on a node, and return it."""

        def look() -> Any:
            pods = self.core.list_namespaced_pod(NAMESPACE, label_selector=f"dagster/run-id={run_id}").items
            return next((pod for pod in pods if pod.spec.node_name), None)

        return until(f"the pod of run {run_id}", look, seconds, self.cluster)

    def paused(self, run_id: str) -> "V1Pod":
        """Wait until a run that `run_command` pauses has written a batch; return its pod."""
        pod = self.pod_of(run_id)
        file = self.shared / f"paused-{pod.metadata.name}"
        until(f"a batch of run {run_id}", file.exists, 180, self.cluster)
        return pod

    def _ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, **options: Any) -> Any:
        """Ask a gateway that is ready, with a token."""
        gateway = until("a gateway", self._ready_gateway, 60, self.cluster)
        answer = requests.request(
            method,
            f"http://{gateway.status.pod_ip}:8000{path}",
            headers={"Authorization": f"Bearer {self.token}", **(headers or {})},
            timeout=60,
            **options,
        )
        answer.raise_for_status()
        return answer

    def _answers(self) -> bool:
        """Return whether the gateway has found the web server, and that the code location."""
        try:
            locations = self.graphql(_LOCATIONS)["locationEntries"]
        except (requests.ConnectionError, requests.HTTPError):
            return False
        return all(each["locationOrLoadError"]["__typename"] == "RepositoryLocation" for each in locations)

    def _ready_gateway(self) -> "V1Pod | None":
        """Return a gateway's pod that a service would send requests to; an upgrade has others that end."""
        return next((pod for pod in self.pods(component="gateway") if _takes_requests(pod)), None)

    def _is_available(self) -> bool:
        found = self.apps.list_namespaced_deployment(NAMESPACE).items
        return bool(found) and all(
            each.status.observed_generation == each.metadata.generation
            and (each.status.updated_replicas or 0)
            == (each.status.available_replicas or 0)
            == (each.status.replicas or 0)
            == each.spec.replicas
            for each in found
        )


def _takes_requests(pod: "V1Pod") -> bool:
    ready = any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions or ())
    return ready and pod.metadata.deletion_timestamp is None


def before_the_run(how: str, value: object, nodes: Mapping[str, str] | None = None, **container: Any) -> str:
    """Return the tag `dagster-k8s/config` of a run that `run_command` stands before.

    nodes      the labels of the nodes where it is to be, where its queue does not say
    container  what else is said of its container
    """
    command = ["python", "-m", "tests.deploy.kubernetes.run_command", how, str(value)]
    pod = {} if nodes is None else {"node_selector": dict(nodes)}
    return json.dumps({"container_config": {"command": command, **container}, "pod_spec_config": pod})
