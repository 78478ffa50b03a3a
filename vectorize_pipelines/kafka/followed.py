"""The topics that drain runs follow: which there are, and the lanes of each."""

from dataclasses import dataclass

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.kafka.topics import Family, TopicNames
from vectorize_pipelines.settings import KafkaSettings

DETECTIONS = "detections"
ASSESSMENTS = "assessments"
#: The names of all, as commands, sensors and transactional ids have them.
FOLLOWED_NAMES: tuple[str, ...] = (*(each.value for each in Modality), DETECTIONS, ASSESSMENTS)


@dataclass(frozen=True, slots=True)
class FollowedTopic:
    """One kind of messages that runs follow.

    name    one of `FOLLOWED_NAMES`
    lanes   its topics in the order in which they are drained: those with priority, and last the one without
    family  the topics that its runs read and write
    """

    name: str
    lanes: tuple[str, ...]
    family: Family

    @property
    def topic(self) -> str:
        """The lane without priority, which names the whole."""
        return self.lanes[-1]


def followed_topic(settings: KafkaSettings, name: str) -> FollowedTopic:
    """Return the topics of that name: a modality's requests have two lanes. Raises `SettingsError`."""
    if name == DETECTIONS:
        return FollowedTopic(name, (settings.detections_topic,), Family.ASSESSMENTS)
    if name == ASSESSMENTS:
        return FollowedTopic(name, (settings.assessment_tasks_topic,), Family.ASSESSMENTS)
    if name not in FOLLOWED_NAMES:
        raise SettingsError(f"no run follows {name!r}; there are {', '.join(FOLLOWED_NAMES)}")
    return FollowedTopic(name, TopicNames(settings.topic_prefix).lanes(Modality(name)), Family.REQUESTS)
