"""Runs on a real control plane: where they run, and what becomes of them when their pods are lost."""

from pathlib import Path

import pytest

from tests.deploy.kubernetes.installation import Installation
from tests.small_corpus import DAYS, write_document

pytestmark = pytest.mark.timeout(600)


def test_a_run_is_a_job(installation: Installation) -> None:
    write_document(installation.shared / "documents", "lamp.md", "# The lamp\n\nIt burns paraffin.\n", 0)
    run_id = installation.launch("embed_corpus", dagster__partition=DAYS[0].isoformat())
    assert installation.finished(run_id) == "SUCCESS", installation.messages(run_id)
    pod = installation.pod_of(run_id)
    assert pod.spec.node_name in ("one", "two")
