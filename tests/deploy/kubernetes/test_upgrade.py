"""An upgrade of the installed chart while a run is at work, and a run that is ended from the UI."""

from dataclasses import replace

import pytest

from tests.deploy.kubernetes.installation import Installation, before_the_run, until
from tests.small_corpus import DAYS, write_document

pytestmark = pytest.mark.timeout(600)

_TERMINATE = """mutation Terminate($runId: String!) { terminateRun(runId: $runId) { __typename } }"""


def test_a_run_ends_with_the_image_that_it_began_with_and_the_next_one_can_be_terminated(
    installation: Installation,
) -> None:
    shared, day = installation.shared, DAYS[2]
    go_on, paused = shared / "go_on", shared / "paused"
    tags = {"dagster/partition": day.isoformat(), "dagster-k8s/config": before_the_run("pause", go_on)}
    for file in (go_on, paused):
        file.unlink(missing_ok=True)
    write_document(shared / "documents", "before.md", "# Before\n\nIt burns paraffin.\n", 2)
    before = installation.launch("embed_corpus", tags)
    until("a batch of the first run", paused.exists, 120, installation.cluster)

    upgraded = replace(installation, values={**installation.values, "image": {"tag": "next"}})
    upgraded.install()
    go_on.touch()
    assert upgraded.finished(before) == "SUCCESS", upgraded.messages(before)
    assert upgraded.pod_of(before).spec.containers[0].image == "vectorize:cpu"

    for file in (go_on, paused):
        file.unlink()
    write_document(shared / "documents", "after.md", "# After\n\nIt burns gas.\n", 2)
    after = upgraded.launch("embed_corpus", tags)
    until("a batch of the second run", paused.exists, 120, installation.cluster)
    assert upgraded.pod_of(after).spec.containers[0].image == "vectorize:next"
    assert upgraded.graphql(_TERMINATE, runId=after)["__typename"] == "TerminateRunSuccess"
    assert upgraded.finished(after) == "CANCELED", upgraded.messages(after)
