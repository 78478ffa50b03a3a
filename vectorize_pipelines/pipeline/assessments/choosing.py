"""The choice which groups of a detection become tasks: by `rule`, and by hashes of pictures where it asks for them."""

from collections.abc import Iterator, Sequence

from vectorize_pipelines.pipeline.assessments.picture_hashes import PictureHashes
from vectorize_pipelines.pipeline.assessments.rule import Choice, Rule
from vectorize_pipelines.pipeline.assessments.tasks import Detection
from vectorize_pipelines.settings import Settings


class Choosing:
    """The choice of groups for one run. Pictures are decoded only where the rule compares them."""

    def __init__(self, settings: Settings) -> None:
        rule = settings.assessments.rule
        self._rule = Rule(rule)
        self._hashes = PictureHashes(settings) if rule.hash_distance is not None else None

    def choose(self, detections: Sequence[Detection]) -> Iterator[Choice]:
        """Yield the choice of each detection, in their order."""
        deserving = [self._rule.deserving(each.content) for each in detections]
        if self._hashes is None:
            for each, choice in zip(detections, deserving, strict=True):
                yield self._rule.choose(each.content.camera_id, each.at, choice, {})
            return
        begun = [self._hashes.begin(choice.groups) for choice in deserving]
        for each, choice, pictures in zip(detections, deserving, begun, strict=True):
            yield self._rule.choose(each.content.camera_id, each.at, choice, self._hashes.collect(pictures))

    def close(self) -> None:
        """End the processes that decode."""
        if self._hashes is not None:
            self._hashes.close()
