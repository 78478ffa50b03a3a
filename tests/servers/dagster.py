"""A real dagster-webserver and dagster-daemon for tests, and a client for their GraphQL API."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from vectorize_pipelines.settings import PROJECT_ROOT

POLL_SECONDS = 0.25


def until(what: str, look: Callable[[], Any], seconds: float = 120) -> Any:
    """Looks until something comes back; what is waited for is named when it does not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"waited {seconds} s in vain for {what}")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class GraphQL:
    """Sends the queries that README shows for curl."""

    def __init__(self, url: str):
        self.url = url
        self.queries = readme_queries()

    def __call__(self, name: str, **variables: Any) -> dict[str, Any]:
        body = {"query": self.queries[name], "variables": variables}
        answer = requests.post(f"{self.url}/graphql", json=body, timeout=30)
        answer.raise_for_status()
        content = answer.json()
        assert "errors" not in content, content["errors"]
        (result,) = content["data"].values()
        return dict(result)


def readme_queries() -> dict[str, str]:
    """Operation name -> query, out of README's curl commands that ask GraphQL."""
    bodies = re.findall(r"/graphql [^']*'[^']*' -d '(\{.*?\})'\n", (PROJECT_ROOT / "README.md").read_text(), re.S)
    queries = [json.loads(body)["query"] for body in bodies]
    return {re.findall(r"^(?:query|mutation) (\w+)", query)[0]: query for query in queries}


@contextmanager
def dagster_servers(home: Path, log: Path, *, path_prefix: str = "", **environment: str) -> Iterator[GraphQL]:
    """Both processes, in process groups of their own so that nothing that they start outlives the test.

    The web server's pages, and GraphQL, lie below `path_prefix`.
    """
    port = free_port()
    variables = {**os.environ, "VECTORIZE_HOME": str(home), "DAGSTER_HOME": str(home / "dagster"), **environment}
    workspace = ["-w", str(PROJECT_ROOT / "workspace.yaml")]
    commands = (
        ["dagster_webserver", "-h", "127.0.0.1", "-p", str(port), "-l", path_prefix, *workspace],
        ["dagster._daemon", "run", *workspace],
    )
    processes = []
    try:
        with log.open("w") as output:
            for module, *arguments in commands:
                command = [sys.executable, "-m", module, *arguments]
                processes.append(
                    subprocess.Popen(command, env=variables, stdout=output, stderr=output, start_new_session=True)
                )
        url = f"http://127.0.0.1:{port}{path_prefix}"
        until(f"the web server (its log is {log})", lambda: _answers(url, processes))
        yield GraphQL(url)
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _answers(url: str, processes: list[subprocess.Popen[bytes]]) -> bool:
    for process in processes:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
    try:
        return requests.get(f"{url}/server_info", timeout=5).ok
    except requests.ConnectionError:
        return False
