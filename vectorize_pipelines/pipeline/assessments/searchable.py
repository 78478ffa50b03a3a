"""Results as rows of the vector store, where the settings name a collection: requests for texts and images.

They go into the transaction of the results, and the assets `text_embeddings` and `image_embeddings` embed them, as they
embed any other request: so a store that is away, or an encoder that is slower than the model's answers, holds up no
result. A task's requests always have the same ids, so that what is sent again is stored once.
"""

import base64
from collections.abc import Iterator

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.kafka.transactions import OutgoingMessage
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage
from vectorize_pipelines.messaging.messages import TaskType
from vectorize_pipelines.messaging.outgoing import prepare
from vectorize_pipelines.pipeline.assessments.prompt import picture_of
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.assessments import AssessmentRow


def embedding_requests(
    settings: Settings, row: AssessmentRow, task: AssessmentTaskMessage
) -> Iterator[OutgoingMessage]:
    """Yield the requests for what a completed task left behind: its texts, and the picture of its group."""
    chosen = settings.assessments
    if chosen.collection is not None:
        text = "\n".join(filter(None, (row.summary, *row.hazards, row.recommendation)))
        yield _request(settings, row, "text", TaskType.TEXT, text, chosen.collection)
    if chosen.image_collection is not None:
        picture = picture_of(task, chosen.max_image_bytes)
        if picture is not None:
            uri = f"data:{picture.media_type};base64,{base64.b64encode(picture.content).decode()}"
            yield _request(settings, row, "image", TaskType.IMAGE, uri, chosen.image_collection)


def _request(
    settings: Settings, row: AssessmentRow, part: str, task_type: TaskType, data: str, collection: str
) -> OutgoingMessage:
    request = {
        "task_id": f"{row.task_id}/{part}",
        "task_type": task_type.value,
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
    modality = Modality.TEXT if task_type is TaskType.TEXT else Modality.IMAGE
    prepared = prepare(settings.kafka, request, modality)
    return OutgoingMessage(prepared.topic, prepared.key, prepared.value)
