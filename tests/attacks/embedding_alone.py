"""One request without Kafka, in a process whose memory is limited."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.pipeline.requests.installation import HashEncoder
from vectorize_pipelines.messaging.messages import InvalidMessageError
from vectorize_pipelines.pipeline.requests.runs import open_single
from vectorize_pipelines.pipeline.requests.single import SingleRequest
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.stores import open_store


def embed_alone(folder: str, request: dict[str, Any]) -> str:
    """Embeds one request without Kafka; says what came of it."""
    given = load_settings({}, home=folder, models={"dimension": 8}, cache={"enabled": "off"})
    store = open_store(given.store, given.home)

    @contextmanager
    def lease(model: str, dimension: int | None) -> Iterator[HashEncoder]:
        yield HashEncoder()

    try:
        single = SingleRequest.of(request, "run", limits=given.kafka.metadata_limits)
    except InvalidMessageError as error:
        return f"refused: {error}"
    with open_single(given, single, store, lease) as stream:
        for _ in written(DirectWriter(given, store), stream):
            pass
    return stream.failures[0].error_class if stream.failures else "done"
