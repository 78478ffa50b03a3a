"""The nodes of a cluster for tests: each has an agent that does what a kubelet does, with this machine's processes.

It registers the node, says that it lives, runs init containers and containers of the pods that the scheduler binds to
it, restarts and probes them, enforces limits of memory, reports their status, and ends them when they are deleted. It
does not pull images, change users, enforce shares of processors, or serve logs: what containers write lies in its
folder.
"""

import datetime
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.servers.kubernetes.images import Image
from tests.servers.kubernetes.network import Network
from tests.servers.kubernetes.pods import PodRun

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

_LEASES = "kube-node-lease"
_BEAT_SECONDS = 1.0
_PROCESSORS = 16
_MEMORY = "64Gi"


class Node:
    """A node, from `start` on. `lose` ends it with all that runs on it, as a power cut would."""

    def __init__(
        self,
        name: str,
        client: "ApiClient",
        network: Network,
        folder: Path,
        images: Mapping[str, Image],
        server: str,
        gpus: int,
        labels: Mapping[str, str],
        taint: str,
    ):
        from kubernetes import client as kubernetes

        self.name = name
        self.network = network
        self.folder = folder
        self.images = images
        self.server = server
        self.core = kubernetes.CoreV1Api(client)
        self._coordination = kubernetes.CoordinationV1Api(client)
        self._gpus = gpus
        self.labels = labels
        self._taint = taint
        self._lost = threading.Event()
        self._pods: dict[str, PodRun] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Register it, and do from then on what its pods ask for."""
        resources = {"cpu": str(_PROCESSORS), "memory": _MEMORY, "pods": "110", "ephemeral-storage": _MEMORY}
        if self._gpus:
            resources["nvidia.com/gpu"] = str(self._gpus)
        body = {
            "metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name, **self.labels}},
            "spec": {"taints": [_taint(self._taint)] if self._taint else []},
        }
        self.core.create_node(body)
        self.core.patch_node_status(
            self.name, {"status": {"capacity": resources, "allocatable": resources, "conditions": [_is_ready()]}}
        )
        self._renew()
        for work in (self._live, self._watch):
            threading.Thread(target=work, name=f"{self.name} {work.__name__}", daemon=True).start()

    def lose(self) -> None:
        """End it with all that runs on it. Nobody is told."""
        self._lost.set()
        with self._lock:
            for pod in self._pods.values():
                pod.lose()

    def evict(self, namespace: str, name: str, message: str) -> None:
        """Evict a pod as a node does that is short of memory or disk."""
        self._pod(namespace, name).evict(message)

    def kill(self, namespace: str, name: str) -> None:
        """Kill the containers of a pod, as a crash does."""
        self._pod(namespace, name).kill()

    def _pod(self, namespace: str, name: str) -> PodRun:
        with self._lock:
            return next(each for each in self._pods.values() if (each.namespace, each.name) == (namespace, name))

    def _live(self) -> None:
        while not self._lost.wait(_BEAT_SECONDS):
            with suppress(Exception):  # the API server is told by the next one
                self._renew()

    def _renew(self) -> None:
        from kubernetes.client import ApiException

        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": now}
        body = {"metadata": {"name": self.name, "namespace": _LEASES}, "spec": spec}
        try:
            self._coordination.patch_namespaced_lease(self.name, _LEASES, body)
        except ApiException as error:
            if error.status != 404:
                raise
            self._coordination.create_namespaced_lease(_LEASES, body)
        self.core.patch_node_status(self.name, {"status": {"conditions": [_is_ready()]}})

    def _watch(self) -> None:
        """Begin each pod that is bound to the node, and hand on what is said of it later."""
        from kubernetes import watch
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        while not self._lost.is_set():
            with suppress(ApiException, HTTPError):  # watches end; the next one begins with all pods
                for event in watch.Watch().stream(
                    self.core.list_pod_for_all_namespaces,
                    field_selector=f"spec.nodeName={self.name}",
                    timeout_seconds=30,
                ):
                    if self._lost.is_set():
                        return
                    self._changed(event["type"], event["object"])

    def _changed(self, kind: str, pod: Any) -> None:
        with self._lock:
            run = self._pods.get(pod.metadata.uid)
            if kind == "DELETED":
                self._pods.pop(pod.metadata.uid, None)
                if run is not None:
                    run.end(0)
                return
            if run is None and pod.status.phase == "Pending" and not self._lost.is_set():
                run = self._pods[pod.metadata.uid] = PodRun(self, pod)
                run.start()
        if run is not None:
            run.seen(pod)
        if run is not None and pod.metadata.deletion_timestamp is not None:
            run.end(pod.metadata.deletion_grace_period_seconds or 0)


def _is_ready() -> dict[str, str]:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}


def _taint(text: str) -> dict[str, str]:
    key, value_effect = text.split("=")
    value, effect = value_effect.split(":")
    return {"key": key, "value": value, "effect": effect}
