"""`make dev`: Dagster's web server and daemon on the project's own instance, in the foreground."""

import argparse
import os
import signal
import socket
import sys

from vectorize_pipelines.errors import SettingsError, VectorizeError
from vectorize_pipelines.home import use_dagster_home
from vectorize_pipelines.settings import load_settings


def main() -> None:
    """Becomes `dagster dev`, with DAGSTER_HOME set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=3000)
    port = parser.parse_args().port
    try:
        _check_port(port)
        use_dagster_home(load_settings())
    except VectorizeError as error:
        sys.exit(f"error: {error}")
    print(f"Dagster's UI: http://localhost:{port}  (state in {os.environ['DAGSTER_HOME']}; Ctrl-C ends it)", flush=True)
    # A shell that starts it in the background has it ignore Ctrl-C's signal, and Dagster's processes end by that one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    module = ["-m", "vectorize_pipelines.definitions"]
    os.execv(sys.executable, [sys.executable, "-m", "dagster", "dev", "--port", str(port), *module])


def _check_port(port: int) -> None:
    """Raises `SettingsError` where nobody can listen there: Dagster would go on without its UI."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except (OSError, OverflowError) as error:
        raise SettingsError(f"port {port}: {error}; `make dev PORT=…` takes another one") from None


if __name__ == "__main__":
    main()
