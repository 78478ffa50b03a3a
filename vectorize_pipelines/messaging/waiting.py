"""Requests that no run has taken up yet, found in what the drain runs have still to read.

Called by `vectorize status`. It reads what is outstanding, so it takes as long as that is.
"""

from dataclasses import dataclass

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.kafka.lag import partition_lags
from vectorize_pipelines.kafka.reading import TopicReader
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.messaging.messages import InvalidMessageError, Request, decode, origin_of
from vectorize_pipelines.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits, and about how many messages of its modality are dealt with before it."""

    request: Request
    modality: Modality
    ahead: int


def find_waiting(settings: KafkaSettings, task_id: str) -> Waiting | None:
    """The newest message with this `task_id` that lies behind the committed offsets, if there is one.

    Raises `KafkaError`, and `KafkaNotConfiguredError`.
    """
    found = [waiting for modality in Modality if (waiting := _find(settings, modality, task_id)) is not None]
    return max(found, key=lambda waiting: waiting.request.origin.version, default=None)


def _find(settings: KafkaSettings, modality: Modality, task_id: str) -> Waiting | None:
    newest: Request | None = None
    ahead = 0
    before = 0  # of the priority lane, all of which goes first
    lags = [each for each in partition_lags(settings, followed_topic(settings, modality)) if each.lag]
    for topic in dict.fromkeys(each.topic for each in lags):
        starts = {each.partition: each.unread.start for each in lags if each.topic == topic}
        with TopicReader(settings, topic, starts) as reader:
            for message in reader.to_end():
                request = _request(settings, message, modality, task_id)
                if request is not None and (newest is None or request.origin.version > newest.origin.version):
                    newest = request
                    # Partitions are read side by side: about as far as this one.
                    ahead = before + (request.origin.offset - starts.get(request.origin.partition, 0)) * len(starts)
        before += sum(each.lag for each in lags if each.topic == topic)
    return None if newest is None else Waiting(newest, modality, ahead)


def _request(settings: KafkaSettings, message: ReceivedMessage, modality: Modality, task_id: str) -> Request | None:
    """The request in a message, if it has this id: the id need not be the key, but it stands in the text then."""
    key, value = message.key(), message.value()
    wanted = task_id.encode("utf-8", "replace")
    if value is None or (key != wanted and b"task_id" in value and wanted not in value):
        return None
    try:
        request = decode(value, key, origin_of(message), modality, settings.metadata_limits)
    except InvalidMessageError:
        return None
    return request if isinstance(request, Request) and request.task_id == task_id else None
