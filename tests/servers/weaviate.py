"""A real Weaviate for tests: built once a machine from its Go module, started on free ports.

`python -m tests.servers.weaviate` builds it: that takes minutes, and a test has a limit of time. Nothing here knows the
project's own code.
"""

import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.go_programs import built, run_go
from tests.servers.packages import UnavailableError
from tests.servers.ports import free_ports
from tests.servers.process import ServerProcess

VERSION = "1.39.0"
_MODULE = f"github.com/weaviate/weaviate/cmd/weaviate-server@v{VERSION}"
_PORTS = ("CLUSTER_GOSSIP_BIND_PORT", "CLUSTER_DATA_BIND_PORT", "RAFT_PORT", "RAFT_INTERNAL_RPC_PORT", "GRPC_PORT")


def binary() -> Path:
    """The server's program, built (minutes) where it has not been. Any number of processes may call it at once.

    Raises `UnavailableError` where there is no Go, or where it cannot build it.
    """
    what = "Weaviate (VECTORIZE_TEST_WEAVIATE_URL may name a server instead)"
    return built(f"weaviate-{VERSION}", "weaviate-server", what, _build)


def _build(go: str, place: Path) -> None:
    run_go(go, "install", _MODULE, folder=place, programs=place)


@dataclass
class Server(ServerProcess):
    """A server with its data in `folder`. Starting it again after `kill` or `stop` finds that data, at the same ports.

    `environment` is laid over what the server is configured by; see Weaviate's list of environment variables. `host` is
    the address that it listens at.
    """

    name = "Weaviate"
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self._port = free_ports(1)[0]

    @property
    def url(self) -> str:
        """Where it is reached by HTTP."""
        return f"http://{self.host}:{self._port}"

    @property
    def grpc_port(self) -> int:
        """Where it is reached by gRPC."""
        return self._ports["GRPC_PORT"]

    def _command(self) -> list[str]:
        return [str(binary()), "--host", self.host, "--port", str(self._port), "--scheme", "http"]

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", ""),
            "PERSISTENCE_DATA_PATH": str(self.folder / "data"),
            "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "true",
            "CLUSTER_HOSTNAME": "node1",
            "CLUSTER_ADVERTISE_ADDR": "127.0.0.1",
            "RAFT_BOOTSTRAP_EXPECT": "1",
            # Alone in its cluster, the server would wait five to ten seconds for a leader before it elects itself.
            "RAFT_HEARTBEAT_TIMEOUT": "1",
            "RAFT_ELECTION_TIMEOUT": "1",
            "RAFT_TIMEOUTS_MULTIPLIER": "1",
            "DISABLE_TELEMETRY": "true",
            "GO_PROFILING_DISABLE": "true",
            "LOG_LEVEL": "warning",
            **{name: str(port) for name, port in self._ports.items()},
            **self.environment,
        }

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v1/.well-known/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def main() -> None:
    """Builds the server. Where it cannot be had, its tests are left out, which is a failure only where CI is set."""
    try:
        binary()
    except UnavailableError as error:
        print(f"tests on Weaviate are left out: {error}", file=sys.stderr)
        sys.exit(os.environ.get("CI") == "true")


if __name__ == "__main__":
    main()
