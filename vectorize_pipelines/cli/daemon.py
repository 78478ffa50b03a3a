"""Dagster's daemon, whose queue lets a run go at once where one of its own sensors has put it there.

    python -m vectorize_pipelines.cli.daemon --workspace workspace.yaml

takes the place of `dagster-daemon run`, which looks at the queue every `dequeue_interval_seconds` only. The limits of
runs, pools and tags are Dagster's own, and so is everything else. `vectorize serve --with-daemon` starts it, and so do
Compose and the chart.
"""

import argparse
import contextlib
import sys
import threading
from pathlib import Path

from vectorize_pipelines.core.installation import default_file
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.settings import load_settings


def main() -> None:
    """Run it until SIGINT or SIGTERM."""
    from vectorize_pipelines.compat import interrupts_deferred, kept_connections, run_daemon
    from vectorize_pipelines.runs.instance import PreparedInstance, open_instance

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", "-w", type=Path, default=default_file("workspace.yaml"))
    workspace = parser.parse_args().workspace
    if not workspace.is_file():
        parser.error(f"--workspace: there is no file {workspace}")
    with contextlib.suppress(KeyboardInterrupt), interrupts_deferred():
        try:
            with open_instance(load_settings()) as instance, kept_connections(instance):
                # A dagster.yaml of one's own need not name the class of instances that knows what was submitted.
                wait = instance.wait_for_runs if isinstance(instance, PreparedInstance) else threading.Event().wait
                run_daemon(instance, workspace, wait)
        except VectorizeError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
