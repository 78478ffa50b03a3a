"""What a run over detections has done, by day, for its metadata and for the command line."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from vectorize_pipelines.pipeline.assessments.rule import LeftOut


@dataclass(slots=True)
class DayFigures:
    """The detections of one day.

    tasks         groups that are assessed
    left_out      groups that are not, by reason
    dead_letters  messages that are no detections, and detections with tasks too large for their topic
    """

    messages: int = 0
    tasks: int = 0
    dead_letters: int = 0
    left_out: Counter[LeftOut] = field(default_factory=Counter)

    def add(self, other: "DayFigures") -> None:
        """Add those of another day."""
        self.messages += other.messages
        self.tasks += other.tasks
        self.dead_letters += other.dead_letters
        self.left_out += other.left_out

    def as_dict(self) -> Mapping[str, int]:
        """Return them by name, the same names always."""
        return {
            "messages": self.messages,
            "tasks": self.tasks,
            "dead_letters": self.dead_letters,
            "left_out": self.left_out.total(),
            **{f"left_out/{reason}": self.left_out[reason] for reason in LeftOut},
        }
