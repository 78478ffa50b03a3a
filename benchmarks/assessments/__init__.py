"""The benchmarks of assessments: detections become tasks, tasks become risks, and risks reach who watches.

A real broker, and a stand-in of a provider, run beside each.
"""

from pathlib import Path

from benchmarks.assessments import assessing, live, tasks
from benchmarks.figures import Figure


def run(place: Path) -> list[Figure]:
    """Every figure."""
    return [*tasks.run(place / "tasks"), *assessing.run(place / "assessing"), *live.run(place / "live")]
