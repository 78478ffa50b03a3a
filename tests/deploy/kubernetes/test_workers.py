"""Celery workers of the installed chart: they execute runs, and what one leaves when it is killed is taken up.

The release is brought to them here, and stays so: by its name the file comes after those whose runs have pods.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.kubernetes.installation import NAMESPACE, Installation, until
from tests.deploy.kubernetes.messages import Messages
from vectorize_pipelines.core.worker_queues import QUEUES
from vectorize_pipelines.runs.tags import UNFINISHED
from vectorize_pipelines.settings import StoreSettings

pytestmark = pytest.mark.timeout(600)

_UNFINISHED = [status.value for status in UNFINISHED]


@pytest.fixture(scope="module")
def workers(installation: Installation) -> Installation:
    """The release with two workers, which are there."""
    worker = {"name": "all", "replicas": 2, "queues": list(QUEUES), "nodeSelector": {"for": "runs"}}
    runs = {**installation.values["runs"], "launcher": "celery"}
    installed = replace(installation, values={**installation.values, "runs": runs, "workers": [worker]})
    installed.install()
    until("the end of runs with pods", lambda: not installed.runs(statuses=_UNFINISHED), 120, installed.cluster)
    until("two workers", lambda: len(listed(installed)) == 2, 120, installed.cluster)
    return installed


def listed(installation: Installation) -> list[dict[str, Any]]:
    """The workers that say that they live."""
    found: list[dict[str, Any]] = json.loads(installation.get("/api/v1/diagnosis/workers/distributed"))["workers"]
    return found


def worker_of(installation: Installation, run_id: str) -> dict[str, Any]:
    """Wait until a worker says that it executes a run; return it."""

    def look() -> dict[str, Any] | None:
        return next((each for each in listed(installation) if each["run_id"] == run_id), None)

    found: dict[str, Any] = until(f"the worker of run {run_id}", look, 60, installation.cluster)
    return found


def running(installation: Installation, queue: str) -> int:
    """The runs of a queue that workers execute, as Prometheus reads it."""
    figures = installation.get("/metrics", "text/plain")
    found = re.search(rf'^vectorize_worker_runs{{queue="{queue}",state="running"}} ([\d.]+)$', figures, re.MULTILINE)
    assert found is not None, figures
    return int(float(found[1]))


def test_a_worker_that_is_told_to_end_hands_over_and_the_run_of_a_killed_one_is_taken_up(
    workers: Installation, store_settings: StoreSettings, tmp_path: Path
) -> None:
    messages = Messages(workers, store_settings, "workers", tmp_path)
    messages.send(50)
    told = messages.run_at_work()["runId"]
    worker = worker_of(workers, told)
    until("the figure of the run", lambda: running(workers, "text") == 1, 60, workers.cluster)
    messages.wait_for_rows()
    workers.core.delete_namespaced_pod(worker["node_id"], NAMESPACE)
    messages.send(50)
    assert workers.finished(told) == "SUCCESS"
    assert any("ended: its worker ends" in message for message in workers.messages(told))

    messages.send(50)
    lost = messages.run_at_work()["runId"]
    worker = worker_of(workers, lost)
    workers.core.delete_namespaced_pod(worker["node_id"], NAMESPACE, grace_period_seconds=0)
    messages.send(50)
    assert workers.finished(lost) == "FAILURE"
    noticed = re.compile(rf"(the machine|executed on) {worker['name']} .*was killed")
    assert any(noticed.search(message) for message in workers.messages(lost)), workers.messages(lost)
    messages.check_each_has_one_result()
    until("two workers again", lambda: len(listed(workers)) == 2, 120, workers.cluster)
    for run_id in (told, lost):
        jobs = workers.batch.list_namespaced_job(NAMESPACE, label_selector=f"dagster/run-id={run_id}").items
        assert not jobs, "no run has a pod of its own"
