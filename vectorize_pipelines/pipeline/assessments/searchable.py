"""Results as rows of the vector store, where the settings name a collection: requests for texts and images.

They go into the transaction of the results, and the assets `text_embeddings` and `image_embeddings` embed them, as they
embed any other request: so a store that is away, or an encoder that is slower than the model's answers, holds up no
result. A task's requests always have the same ids, so that what is sent again is stored once.
"""

import base64
import logging
from collections.abc import Iterator

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.kafka.topics import NORMAL_PRIORITY, TopicNames, largest_message
from vectorize_pipelines.kafka.transactions import OutgoingMessage
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage
from vectorize_pipelines.messaging.messages import TASK_TYPE_OF, InvalidMessageError
from vectorize_pipelines.messaging.outgoing import prepare
from vectorize_pipelines.pipeline.assessments.prompt import picture_of
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.assessments import AssessmentRow

logger = logging.getLogger(__name__)


class EmbeddingRequests:
    """Makes the requests of one run. What their topics do not take is left out, and the log says so."""

    def __init__(self, settings: Settings):
        """Ask the brokers what they take, where the settings name a collection. Raises `KafkaError`."""
        self._settings = settings
        chosen, names = settings.assessments, TopicNames(settings.kafka.topic_prefix)
        collections = {Modality.TEXT: chosen.collection, Modality.IMAGE: chosen.image_collection}
        self._largest = {
            modality: largest_message(settings.kafka, names.lane(modality, NORMAL_PRIORITY))
            for modality, collection in collections.items()
            if collection is not None
        }

    def of(self, row: AssessmentRow, task: AssessmentTaskMessage) -> Iterator[OutgoingMessage]:
        """Yield the requests for what a completed task left behind: its texts, and the picture of its group."""
        chosen = self._settings.assessments
        if chosen.collection is not None:
            text = "\n".join(filter(None, (row.summary, *row.hazards, row.recommendation)))
            yield from self._request(row, Modality.TEXT, text, chosen.collection)
        if chosen.image_collection is not None:
            picture = picture_of(task, chosen.max_image_bytes)
            if picture is not None:
                uri = f"data:{picture.media_type};base64,{base64.b64encode(picture.content).decode()}"
                yield from self._request(row, Modality.IMAGE, uri, chosen.image_collection)

    def _request(self, row: AssessmentRow, modality: Modality, data: str, collection: str) -> Iterator[OutgoingMessage]:
        """Yield the request, or say why there is none: the result has been judged, and does not wait for it."""
        request = {
            "task_id": f"{row.task_id}/{modality}",
            "task_type": TASK_TYPE_OF[modality].value,
            "data": data,
            "collection": collection,
            "metadata": {
                "task_id": row.task_id,
                "message_id": row.message_id,
                "camera_id": row.camera_id,
                "group_index": row.group_index,
                "risk_level": row.level,
                "risk_score": row.score,
                "occurred_at": row.occurred_at.isoformat(),
            },
        }
        try:
            prepared = prepare(self._settings.kafka, request, modality)
        except InvalidMessageError as error:
            logger.warning("the %s of task %s is not made searchable: %s", modality, row.task_id, error)
            return
        size = len(prepared.key) + len(prepared.value)
        if size > self._largest[modality]:
            logger.warning(
                "the %s of task %s is not made searchable: its request has %d bytes, and %s takes %d "
                "(max.message.bytes)",
                *(modality, row.task_id, size, prepared.topic, self._largest[modality]),
            )
            return
        yield OutgoingMessage(prepared.topic, prepared.key, prepared.value)
