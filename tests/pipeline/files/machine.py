"""What tests of several machines do on each of them: a process with a VECTORIZE_HOME of its own.

PostgreSQL and the store are those of all, as their environment says. Called in forks (`tests.forks`).
"""

import json
import os
import signal
from contextlib import closing
from pathlib import Path

from tests.pipeline.files.installation import COLLECTION, Installation
from vectorize_pipelines.pipeline.files.attempted import FileAttempts
from vectorize_pipelines.pipeline.files.comparison import compare_folder
from vectorize_pipelines.pipeline.files.documents import DocumentReader, corpus_source
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, load_settings
from vectorize_pipelines.state.generations import EmbeddingConfig
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.state.manifest import open_manifest
from vectorize_pipelines.stores import open_store


def opened(folder: Path) -> Installation:
    settings = load_settings()
    return Installation(settings, folder, open_store(settings.store, settings.home))


def find_and_run(folder: Path) -> None:
    """Say what there is to do, as the sensor sees it, do it, and say what was done."""
    installation = opened(folder)
    source = corpus_source(installation.settings, str(folder))
    reader = DocumentReader(installation.settings, EmbeddingConfig(DEFAULT_TEXT_MODEL))
    found = compare_folder(installation.settings, COLLECTION, source, reader)
    stream = installation.run(run_id=f"run-{os.getpid()}")
    totals = stream.totals.sum()
    print(
        json.dumps(
            {
                "changed": found.changed,
                "vanished": found.vanished,
                "unchanged": found.unchanged,
                "documents": totals.documents,
                "encoded": totals.encoded,
                "deleted": totals.deleted,
                "failures": {Path(failure.source_id).name: failure.message for failure in stream.failures},
            }
        ),
        flush=True,
    )


def die_with(folder: Path, name: str) -> None:
    """Be killed with one file alone in hand."""
    settings = load_settings()
    files = corpus_source(settings, str(folder)).list().files
    with closing(open_manifest(settings, COLLECTION)) as manifest:
        attempts = FileAttempts.open(manifest, f"run-{os.getpid()}", ExclusiveLock())
        attempts.note_alone(files[os.path.realpath(folder / name)], "embedding")
        os.kill(os.getpid(), signal.SIGKILL)
