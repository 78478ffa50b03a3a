"""Dagster's web server as `vectorize serve` starts it, alone, with a small location of the tests' own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.dev import until

LOCATION, JOB, ASSET = "small", "noop", "thing"
_DEFINITIONS = """
import dagster as dg

@dg.op
def work(): ...

@dg.job
def noop():
    work()

@dg.asset
def thing(): ...

defs = dg.Definitions(jobs=[noop], assets=[thing])
"""
#: Launches the job; nothing runs it, since no daemon takes it from the queue.
LAUNCH = f"""mutation Launch {{launchRun(executionParams: {{mode: "default", runConfigData: {{}}, selector: {{
  repositoryLocationName: "{LOCATION}", repositoryName: "__repository__", jobName: "{JOB}"}}}})
  {{__typename ... on LaunchRunSuccess {{run {{runId}}}}}}}}"""
RUNS = "query Runs {runsOrError {... on Runs {results {runId}}}}"


@contextmanager
def dagster_web(folder: Path, log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start it with its state below `folder`; `arguments` say where it listens. Does not wait until it is ready."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.py").write_text(_DEFINITIONS)
    workspace = folder / "workspace.yaml"
    location = {"python_file": {"relative_path": "small.py", "location_name": LOCATION}}
    workspace.write_text(json.dumps({"load_from": [location]}))
    command = [sys.executable, "-m", "vectorize_pipelines.cli.web_server", "--workspace", str(workspace), *arguments]
    variables = {**os.environ, "VECTORIZE_HOME": str(folder / "home")}
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def socket_of(process: subprocess.Popen[bytes], path: Path, log: Path) -> Path:
    """The Unix socket of a server, once it is there."""
    until(f"the socket ({log})", lambda: path.exists() or process.poll() is not None)
    assert process.poll() is None, log.read_text(errors="replace")
    return path
