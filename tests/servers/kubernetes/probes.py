"""Startup, readiness and liveness of a container, asked as its pod says."""

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kubernetes.client import V1Container

    from tests.servers.kubernetes.containers import Container

_LOOK_SECONDS = 0.1


class Probes:
    """Asks a running container until it ends; `is_ready` is what its pod reports."""

    def __init__(self, spec: "V1Container", running: "Container", address: str, give_up: Callable[[str], None]):
        self._spec = spec
        self._running = running
        self._address = address
        self._give_up = give_up
        self.is_started = spec.startup_probe is None
        self.is_ready = self.is_started and spec.readiness_probe is None
        probed = (spec.startup_probe, spec.readiness_probe, spec.liveness_probe)
        if any(probed):
            threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        if self._spec.startup_probe is not None and not self._start(self._spec.startup_probe):
            return
        due = {"readiness": self._first(self._spec.readiness_probe), "liveness": self._first(self._spec.liveness_probe)}
        failures = {"readiness": 0, "liveness": 0}
        while self._running.wait(_LOOK_SECONDS) is None:
            for kind, when in due.items():
                if time.monotonic() < when:
                    continue
                probe = self._spec.readiness_probe if kind == "readiness" else self._spec.liveness_probe
                failures[kind] = 0 if self._succeeds(probe) else failures[kind] + 1
                due[kind] = time.monotonic() + (probe.period_seconds or 10)
                lasting = failures[kind] >= (probe.failure_threshold or 3)
                if kind == "readiness" and (lasting or not failures[kind]):
                    self.is_ready = not lasting
                elif kind == "liveness" and lasting:
                    self._give_up("its liveness probe failed")
                    return

    def _start(self, probe: Any) -> bool:
        failures = 0
        time.sleep(probe.initial_delay_seconds or 0)
        while self._running.wait(0) is None:
            if self._succeeds(probe):
                self.is_started = True
                self.is_ready = self._spec.readiness_probe is None
                return True
            failures += 1
            if failures >= (probe.failure_threshold or 3):
                self._give_up("its startup probe failed")
                return False
            self._running.wait(probe.period_seconds or 10)
        return False

    @staticmethod
    def _first(probe: Any) -> float:
        return float("inf") if probe is None else time.monotonic() + (probe.initial_delay_seconds or 0)

    def _succeeds(self, probe: Any) -> bool:
        seconds = probe.timeout_seconds or 1
        if probe._exec:
            return self._running.run(probe._exec.command, seconds)
        if probe.http_get:
            scheme = (probe.http_get.scheme or "HTTP").lower()
            headers = {each.name: each.value for each in probe.http_get.http_headers or []}
            url = f"{scheme}://{self._address}:{self._port(probe.http_get.port)}{probe.http_get.path or '/'}"
            return _answers(url, headers, seconds)
        if probe.tcp_socket:
            return _accepts(self._address, self._port(probe.tcp_socket.port), seconds)
        if probe.grpc:
            return _serves(f"{self._address}:{probe.grpc.port}", probe.grpc.service or "", seconds)
        raise NotImplementedError(f"a probe by {probe}")

    def _port(self, port: Any) -> int:
        named = {each.name: each.container_port for each in self._spec.ports or []}
        return int(named.get(port, port))


def _answers(url: str, headers: dict[str, str], seconds: float) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=seconds) as answer:
            return bool(answer.status < 400)
    except (urllib.error.URLError, OSError):
        return False


def _accepts(address: str, port: int, seconds: float) -> bool:
    try:
        socket.create_connection((address, port), seconds).close()
    except OSError:
        return False
    return True


def _serves(address: str, service: str, seconds: float) -> bool:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=seconds
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
