"""One pod on a node of a cluster for tests: its containers from first to last, and what the API is told of them."""

import datetime
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.servers.kubernetes.containers import Container, Mount
from tests.servers.kubernetes.names import resolv_conf
from tests.servers.kubernetes.probes import Probes
from tests.servers.kubernetes.volumes import PodInputs, expand, in_bytes

if TYPE_CHECKING:
    from kubernetes.client import V1Container, V1Pod

    from tests.servers.kubernetes.nodes import Node

_LOOK_SECONDS = 0.05
_GONE_SECONDS = 20.0
#: From the end of a container to its next start; a kubelet begins with 10.
_RESTART_SECONDS = 1.0


class _ContainerState:
    """A container of a pod over all of its starts."""

    def __init__(self, spec: "V1Container"):
        self.spec = spec
        self.running: Container | None = None
        self.probes: Probes | None = None
        self.since = _now()
        self.ended: dict[str, Any] | None = None
        self.ended_at = 0.0
        self.starts = 0
        self.waiting = "ContainerCreating"

    @property
    def is_ready(self) -> bool:
        return self.running is not None and self.probes is not None and self.probes.is_ready

    def look(self) -> bool:
        """Note whether it has ended; return whether it has just."""
        if self.running is None:
            return False
        code = self.running.wait(0)
        if code is None:
            return False
        killed = self.running.out_of_memory
        reason = "OOMKilled" if killed else "Error" if code else "Completed"
        self.ended = {
            "exitCode": 137 if killed else code,
            "reason": reason,
            "startedAt": self.since,
            "finishedAt": _now(),
        }
        self.ended_at = time.monotonic()
        self.running = None
        return True

    def status(self, restarting: bool) -> dict[str, Any]:
        state: dict[str, Any]
        if self.running is not None:
            state = {"running": {"startedAt": self.since}}
        elif self.ended is not None and not restarting:
            state = {"terminated": self.ended}
        else:
            state = {"waiting": {"reason": self.waiting if self.ended is None else "CrashLoopBackOff"}}
        status = {"name": self.spec.name, "image": self.spec.image, "imageID": self.spec.image, "state": state}
        if self.ended is not None and "terminated" not in state:
            status["lastState"] = {"terminated": self.ended}
        started = self.running is not None and self.probes is not None and self.probes.is_started
        return status | {"ready": self.is_ready, "started": started, "restartCount": max(0, self.starts - 1)}


class PodRun:
    """A pod from `start` until its containers have ended, or it is deleted, evicted or lost with its node."""

    def __init__(self, node: "Node", pod: "V1Pod"):
        self._node = node
        self._pod = pod
        self.namespace: str = pod.metadata.namespace
        self.name: str = pod.metadata.name
        self._folder: Path = node.folder / f"{self.namespace}_{self.name}_{pod.metadata.uid[:8]}"
        self._inits = [_ContainerState(each) for each in pod.spec.init_containers or []]
        self._containers = [_ContainerState(each) for each in pod.spec.containers]
        self._ending = threading.Event()
        self._deadline = float("inf")
        self._lost = threading.Event()
        self._evicted: str | None = None
        self._told: dict[str, Any] = {}
        self._since = _now()
        self._address = ""

    def start(self) -> None:
        """Begin it."""
        self._thread = threading.Thread(target=self._run, name=f"pod {self.name}", daemon=True)
        self._thread.start()

    def end(self, grace_seconds: float) -> None:
        """End it in good order, and kill what is left after `grace_seconds`; the API is told then."""
        self._deadline = min(self._deadline, time.monotonic() + grace_seconds)
        self._ending.set()

    def lose(self) -> None:
        """Kill it, and wait until nothing of it is left; nobody is told."""
        self._lost.set()
        self.kill()
        self._thread.join(_GONE_SECONDS)

    def kill(self) -> None:
        """Kill the containers that run, as a crash does; its policy says what comes then."""
        for each in (*self._inits, *self._containers):
            running = each.running
            if running is not None:
                running.kill()

    def evict(self, message: str) -> None:
        """End it as a node does that is short of something."""
        self._evicted = message
        self.end(0)

    def seen(self, pod: "V1Pod") -> None:
        """Have the pod's conditions told again where the API server has others: its node may have been late."""
        there = {each.type: each.status for each in pod.status.conditions or ()}
        if any(there.get(each["type"]) != each["status"] for each in self._told.get("conditions", ())):
            self._told = {}

    def _run(self) -> None:
        self._folder.mkdir(parents=True)
        network, self._address = self._node.network.connect()
        try:
            self._write_names()
            self._inputs = PodInputs(self._node.core, self._pod, self._address, self._folder)
            if all(self._complete(each, network) for each in self._inits):
                self._run_containers(network)
        finally:
            self._stop()
            if not self._lost.is_set():
                self._finish()
            self._node.network.disconnect(network)

    def _write_names(self) -> None:
        (self._folder / "hosts").write_text(f"127.0.0.1 localhost\n{self._address} {self.name}\n")
        (self._folder / "resolv.conf").write_text(resolv_conf(self._node.network.host, self.namespace))

    def _complete(self, state: _ContainerState, network: str) -> bool:
        """Run an init container, again where the pod's policy says so; return whether the next one may begin."""
        while not self._is_over() and self._begin(state, network):
            while not state.look():
                if self._is_over():
                    return False
                time.sleep(_LOOK_SECONDS)
            if state.ended is not None and state.ended["exitCode"] == 0:
                return True
            if self._pod.spec.restart_policy == "Never":
                return False
            self._ending.wait(_RESTART_SECONDS)
        return False

    def _run_containers(self, network: str) -> None:
        for state in self._containers:
            if not self._begin(state, network):
                return
        while not self._is_over():
            self._report()
            for state in self._containers:
                state.look()
                again = self._is_restarted(state) and time.monotonic() > state.ended_at + _RESTART_SECONDS
                if state.running is None and again and not self._begin(state, network):
                    return
            if not any(state.running or self._is_restarted(state) for state in self._containers):
                return
            time.sleep(_LOOK_SECONDS)

    def _begin(self, state: _ContainerState, network: str) -> bool:
        """Start a container as soon as what it refers to is there; return whether it was."""
        from kubernetes.client import ApiException

        while not self._is_over():
            try:
                running = self._container(state, network)
                break
            except ApiException as error:
                state.waiting = "CreateContainerConfigError" if error.status == 404 else "ContainerCreating"
                self._report()
                self._ending.wait(0.2)
        else:
            return False
        running.start()
        state.running, state.since = running, _now()
        state.starts += 1
        state.probes = Probes(state.spec, running, self._address, lambda why: running.kill())
        if self._lost.is_set():
            running.kill()
        self._report()
        return True

    def _container(self, state: _ContainerState, network: str) -> Container:
        spec, image = state.spec, self._node.images[state.spec.image]
        values = {**image.environment, "HOSTNAME": self.name, **self._inputs.environment(spec, self._services())}
        limits = (spec.resources and spec.resources.limits) or {}
        mounts = [Mount(folder, str(folder), read_only=True) for folder in image.folders]
        # Volumes hide what the image has, so they come first, and the image's folders are put into them.
        names = [Mount(self._folder / name, f"/etc/{name}", read_only=True) for name in ("hosts", "resolv.conf")]
        mounts = [*self._inputs.mounts(spec), *mounts, *names]
        security = spec.security_context
        return Container(
            [expand(word, values) for word in (*(spec.command or ()), *(spec.args or ()))],
            values,
            spec.working_dir or image.working_directory,
            mounts,
            network,
            self._folder / f"{spec.name}-{state.starts}",
            read_only_root=bool(security and security.read_only_root_filesystem),
            limit_bytes=in_bytes(limits["memory"]) if "memory" in limits else None,
        )

    def _services(self) -> dict[str, str]:
        host, port = self._node.server.removeprefix("https://").split(":")
        found: dict[str, str] = {}
        linked = self._pod.spec.enable_service_links is not False
        for service in self._node.core.list_namespaced_service(self.namespace).items if linked else []:
            name = service.metadata.name.upper().replace("-", "_")
            address, number = service.spec.cluster_ip, service.spec.ports[0].port
            found |= {f"{name}_SERVICE_HOST": address, f"{name}_SERVICE_PORT": str(number)}
            found[f"{name}_PORT"] = f"tcp://{address}:{number}"
        return found | {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}

    def _is_over(self) -> bool:
        return self._ending.is_set() or self._lost.is_set()

    def _is_restarted(self, state: _ContainerState) -> bool:
        policy = self._pod.spec.restart_policy or "Always"
        failed = state.ended is not None and state.ended["exitCode"] != 0
        return state.running is None and (policy == "Always" or (policy == "OnFailure" and failed))

    def _stop(self) -> None:
        """End all containers that run, until the deadline in good order."""
        states = [each for each in (*self._inits, *self._containers) if each.running is not None]
        for state in states:
            if state.running is not None and not self._lost.is_set():
                state.running.terminate()
        for state in states:
            while not state.look():
                late = self._lost.is_set() or time.monotonic() > self._deadline or not self._ending.is_set()
                if late and state.running is not None:
                    state.running.kill()
                time.sleep(_LOOK_SECONDS)

    def _finish(self) -> None:
        """Tell how the pod ended; one that was deleted goes for good then."""
        from kubernetes.client import ApiException

        ended = [each.ended for each in (*self._inits, *self._containers)]
        succeeded = self._evicted is None and all(each is not None and each["exitCode"] == 0 for each in ended)
        self._report("Succeeded" if succeeded else "Failed")
        with suppress(ApiException):  # it is gone already
            pod = self._node.core.read_namespaced_pod(self.name, self.namespace)
            if pod.metadata.deletion_timestamp is not None and pod.metadata.uid == self._pod.metadata.uid:
                self._node.core.delete_namespaced_pod(self.name, self.namespace, grace_period_seconds=0)

    def _report(self, phase: str | None = None) -> None:
        from kubernetes.client import ApiException

        begun = any(state.starts for state in self._containers)
        ready = phase is None and all(state.is_ready for state in self._containers)
        conditions = {"Initialized": begun, "ContainersReady": ready, "Ready": ready}
        status: dict[str, Any] = {
            "phase": phase or ("Running" if begun else "Pending"),
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "startTime": self._since,
            "conditions": [{"type": kind, "status": str(holds)} for kind, holds in conditions.items()],
            "initContainerStatuses": [each.status(restarting=False) for each in self._inits],
            "containerStatuses": [
                each.status(restarting=phase is None and self._is_restarted(each)) for each in self._containers
            ],
        }
        if self._evicted is not None and phase is not None:
            status |= {"reason": "Evicted", "message": self._evicted}
            reason = {"reason": "TerminationByKubelet", "message": self._evicted}
            status["conditions"].append({"type": "DisruptionTarget", "status": "True", **reason})
        if status != self._told and not self._lost.is_set():
            self._told = status  # not after it was told: `seen` may have been called meanwhile
            try:
                self._node.core.patch_namespaced_pod_status(self.name, self.namespace, {"status": status})
            except ApiException:  # of a pod that is gone nobody wants to know; another one is told again
                self._told = {}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
