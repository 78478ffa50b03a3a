"""`make dev`: what keeps it from starting is said, and it ends."""

import socket
import subprocess
import sys
from pathlib import Path


def test_a_port_that_is_taken_is_named(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "vectorize_pipelines.dev", "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert f"port {port}: " in done.stderr
    assert "`make dev PORT=…`" in done.stderr
    assert not done.stdout
