"""An environment for each peer, made of its locked requirements where it is missing. Called by `encoders.py`.

They lie in `benchmarks/.peers`, not under version control. A lock is made anew, here for LlamaIndex, by
cd benchmarks/peers && uv pip compile --python-version 3.11 -c constraints.txt \\
    llamaindex/requirements.in -o llamaindex/requirements.txt
"""

import os
import shutil
import sys
from pathlib import Path

from benchmarks.figures import process
from vectorize_pipelines.settings import PROJECT_ROOT

PEERS = Path(__file__).parent
ENVIRONMENTS = PROJECT_ROOT / "benchmarks" / ".peers"


def interpreter(peer: str) -> Path:
    """The Python of the peer's environment. Raises `ProcessFailedError` where it cannot be installed."""
    requirements = PEERS / peer / "requirements.txt"
    environment = ENVIRONMENTS / peer
    python, installed = environment / "bin" / "python", environment / "installed.txt"
    if not (installed.is_file() and installed.read_text() == requirements.read_text()):
        process(_uv(), "venv", "--quiet", "--clear", "--python", sys.executable, environment)
        process(_uv(), "pip", "install", "--quiet", "--no-deps", "--python", python, "--requirements", requirements)
        shutil.copy(requirements, installed)
    return python


def _uv() -> str | Path:
    """`uv run`, which `make bench` uses, names itself in the environment."""
    return os.environ.get("UV") or shutil.which("uv") or PROJECT_ROOT / ".tools" / "bin" / "uv"
