"""The benchmark `assessments`: from detections to risks, with a real broker and a stand-in of a provider."""

from pathlib import Path

from benchmarks.assessments import assessing, live
from benchmarks.figures import Figure
from tests.servers.kafka import Server


def run(place: Path) -> list[Figure]:
    """Every figure."""
    with Server(place / "kafka", heap="1g", compiling=()) as server:
        return [*assessing.run(place, server), *live.run(place, server)]
