"""The manifest of files: a SQLite file for each collection, or tables in PostgreSQL, which several machines share."""

from vectorize_pipelines.state.manifest.base import (
    AloneInHand,
    AttemptNotes,
    FileStage,
    Manifest,
    ManifestEntry,
    Suspect,
)
from vectorize_pipelines.state.manifest.opening import open_existing_manifest, open_manifest

__all__ = [
    "AloneInHand",
    "AttemptNotes",
    "FileStage",
    "Manifest",
    "ManifestEntry",
    "Suspect",
    "open_existing_manifest",
    "open_manifest",
]
