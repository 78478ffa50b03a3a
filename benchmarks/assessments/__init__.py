"""The benchmarks of assessing: tasks made of detections beside the broker."""

from pathlib import Path

from benchmarks.assessments import tasks
from benchmarks.figures import Figure


def run(place: Path) -> list[Figure]:
    """Detections that become tasks."""
    return [*tasks.run(place / "tasks")]
