"""The benchmarks of assessing: tasks made of detections beside the broker, and judged by a server beside it."""

from pathlib import Path

from benchmarks.assessments import assessing, tasks
from benchmarks.figures import Figure


def run(place: Path) -> list[Figure]:
    """Detections that become tasks, and tasks that become risks."""
    return [*tasks.run(place / "tasks"), *assessing.run(place / "assessing")]
