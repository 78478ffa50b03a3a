"""A Kubernetes cluster for tests: a real control plane on free ports, with nodes of `nodes`.

etcd, API server, controller manager and scheduler are those of Kubernetes; access is by RBAC. A node that says nothing
for some seconds is taken for lost, not after the usual 50. Nothing here knows the project's own code.
"""

import json
import secrets
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.servers.kubernetes import certificates, names
from tests.servers.kubernetes.images import Image
from tests.servers.kubernetes.network import Network
from tests.servers.kubernetes.nodes import Node
from tests.servers.kubernetes.programs import control_plane, helm
from tests.servers.ports import free_ports
from tests.servers.process import ServerProcess

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

#: After so long without a sign of life a node is lost: longer than a busy machine keeps an agent's thread waiting.
LOST_SECONDS = 20


@dataclass
class _Server(ServerProcess):
    """One server of the control plane; it is ready when `ready` answers."""

    kind: str
    folder: Path
    arguments: Sequence[str]
    ready: str
    token: str

    @property
    def name(self) -> str:  # type: ignore[override]
        """As errors name it, and its log's file."""
        return self.kind

    def __exit__(self, *exception: object) -> None:
        self.kill()  # in good order they wait for their clients

    def _command(self) -> list[str]:
        return [str(control_plane()), self.kind, *self.arguments]

    def _is_ready(self) -> bool:
        context = ssl._create_unverified_context()
        request = urllib.request.Request(self.ready, headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urllib.request.urlopen(request, timeout=2, context=context) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Cluster:
    """A cluster with its data in `folder`, whose nodes run `images`. Needs root: raises `UnavailableError` without."""

    def __init__(self, folder: Path, images: Mapping[str, Image]):
        self._folder = folder
        self._images = images
        self._stack = ExitStack()
        self._token = secrets.token_hex(16)
        self.network = Network()
        self.nodes: dict[str, Node] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.network)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._keys = certificates.make(self._folder / "keys", self.network.host, "127.0.0.1")
            self._port, *ports = free_ports(5)
            for server in self._servers(ports):
                stack.enter_context(server)
            stack.callback(names.serve(self.network.host, self.client()).close)
            stack.callback(self._stop_nodes)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Where the API server is, for this machine and for pods."""
        return f"https://{self.network.host}:{self._port}"

    @property
    def kubeconfig(self) -> Path:
        """The file with which `helm` and `kubectl` may do everything."""
        return self._folder / "kubeconfig"

    def client(self) -> "ApiClient":
        """Return a client that may do everything."""
        from kubernetes import client

        configuration = client.Configuration(host=self.url)
        configuration.ssl_ca_cert = str(self._keys.authority)
        configuration.api_key = {"authorization": f"Bearer {self._token}"}
        configuration.connection_pool_maxsize = 32
        return client.ApiClient(configuration)

    def add_node(self, name: str, gpus: int = 0, labels: Mapping[str, str] | None = None, taint: str = "") -> Node:
        """Register a node and start its agent. `taint`: `key=value:effect`, which keeps other pods away."""
        node = Node(
            name,
            self.client(),
            self.network,
            self._folder / "nodes" / name,
            self._images,
            self.url,
            gpus,
            labels or {},
            taint,
        )
        self.nodes[name] = node
        node.start()
        return node

    def helm(self, *arguments: str) -> str:
        """Run `helm` on the cluster; return its output. Raises `RuntimeError` with what it said."""
        return run_helm(*arguments, "--kubeconfig", str(self.kubeconfig))

    def until_established(self, definition: str, seconds: float = 60) -> None:
        """Wait until the API server serves the kind of a CustomResourceDefinition that was just made."""
        from kubernetes import client

        extensions = client.ApiextensionsV1Api(self.client())
        deadline = time.monotonic() + seconds
        while not _is_established(extensions.read_custom_resource_definition(definition)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{definition} is not established after {seconds} s")
            time.sleep(0.1)

    def logs(self) -> str:
        """Return the ends of the logs of all containers, for the message of a test that fails."""
        files = sorted(self._folder.glob("nodes/*/*/*.log"))
        return "\n".join(
            f"=== {file.relative_to(self._folder)}\n{file.read_text(errors='replace')[-3000:]}" for file in files
        )

    def _stop_nodes(self) -> None:
        for node in self.nodes.values():
            node.lose()

    def _servers(self, ports: Sequence[int]) -> list[_Server]:
        store, peers, manager, scheduler = ports
        keys, folder = self._keys, self._folder
        tokens = folder / "tokens.csv"
        tokens.write_text(f'{self._token},admin,admin,"system:masters"\n')
        self.kubeconfig.write_text(json.dumps(self._kubeconfig()))
        etcd = f"http://127.0.0.1:{store}"
        peer = f"http://127.0.0.1:{peers}"
        access = [f"--kubeconfig={self.kubeconfig}", f"--authentication-kubeconfig={self.kubeconfig}"]
        access += [f"--authorization-kubeconfig={self.kubeconfig}", "--leader-elect=false", "--bind-address=127.0.0.1"]
        return [
            self._server(
                "etcd",
                f"{etcd}/readyz",
                f"--data-dir={folder / 'etcd'}",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ),
            self._server(
                "kube-apiserver",
                f"{self.url}/readyz",
                f"--etcd-servers={etcd}",
                f"--bind-address={self.network.host}",
                f"--advertise-address={self.network.host}",
                f"--secure-port={self._port}",
                f"--tls-cert-file={keys.server}",
                f"--tls-private-key-file={keys.server_key}",
                f"--token-auth-file={tokens}",
                "--authorization-mode=RBAC",
                "--anonymous-auth=false",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={keys.account_key}",
                f"--service-account-signing-key-file={keys.account_key}",
                f"--service-cluster-ip-range={self.network.services}",
                "--endpoint-reconciler-type=none",
            ),
            self._server(
                "kube-controller-manager",
                f"https://127.0.0.1:{manager}/healthz",
                *access,
                f"--secure-port={manager}",
                f"--service-account-private-key-file={keys.account_key}",
                f"--root-ca-file={keys.authority}",
                f"--node-monitor-grace-period={LOST_SECONDS}s",
                "--node-monitor-period=1s",
            ),
            self._server(
                "kube-scheduler", f"https://127.0.0.1:{scheduler}/healthz", *access, f"--secure-port={scheduler}"
            ),
        ]

    def _server(self, kind: str, ready: str, *arguments: str) -> _Server:
        return _Server(kind, self._folder / "control-plane", arguments, ready, self._token)

    def _kubeconfig(self) -> dict[str, Any]:
        cluster = {"server": self.url, "certificate-authority": str(self._keys.authority)}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self._token}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin"}}],
            "current-context": "tests",
        }


def _is_established(definition: Any) -> bool:
    return any(each.type == "Established" and each.status == "True" for each in definition.status.conditions or ())


def run_helm(*arguments: str) -> str:
    """Run `helm`; return its output. Raises `RuntimeError` with what it said."""
    done = subprocess.run([str(helm()), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"helm {' '.join(arguments[:2])} failed: {done.stdout}{done.stderr}")
    return done.stdout
