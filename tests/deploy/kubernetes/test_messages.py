"""Runs of the installed chart that the sensor of a topic launches, on a real broker."""

from pathlib import Path

import pytest

from tests.deploy.kubernetes.installation import NAMESPACE, Installation
from tests.deploy.kubernetes.messages import Messages
from vectorize_pipelines.settings import StoreSettings

pytestmark = pytest.mark.timeout(600)


def test_messages_start_a_run_and_have_one_result_each_though_it_is_killed(
    installation: Installation, store_settings: StoreSettings, tmp_path: Path
) -> None:
    messages = Messages(installation, store_settings, "killed", tmp_path)
    messages.send(50)
    run = messages.run_at_work()
    assert {"key": "dagster/sensor_name", "value": "text_lag"} in run["tags"]
    pod = installation.pod_of(run["runId"])
    assert installation.cluster.nodes[pod.spec.node_name].labels == {"for": "runs"}
    messages.wait_for_rows()
    installation.cluster.nodes[pod.spec.node_name].kill(NAMESPACE, pod.metadata.name)
    messages.send(50)
    assert installation.finished(run["runId"]) == "FAILURE"
    said = "\n".join(installation.messages(run["runId"]))
    assert f"The pod {pod.metadata.name} on the node {pod.spec.node_name} ended with signal 9" in said
    messages.check_each_has_one_result()
