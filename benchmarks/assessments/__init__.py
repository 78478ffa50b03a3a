"""The benchmarks of assessing: tasks made of detections, judged by a server beside them, and pushed to clients."""

from pathlib import Path

from benchmarks.assessments import assessing, live, tasks
from benchmarks.figures import Figure
from tests.servers.kafka import Server


def run(place: Path) -> list[Figure]:
    """Detections that become tasks, tasks that become risks, and risks on their way to clients."""
    figures = tasks.run(place / "tasks")
    with Server(place / "kafka", heap="1g", compiling=()) as server:
        return [*figures, *assessing.run(place, server), *live.run(place, server)]
