"""The sensors for requests that wait in Kafka: `text_lag`, `image_lag`, `document_lag`."""

import dagster as dg

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.jobs import REQUEST_JOBS
from vectorize_pipelines.sensors.following import lag_sensor
from vectorize_pipelines.settings import Settings


def request_sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """Return the sensors that launch drain runs of requests, one for each modality."""
    modalities = (Modality.TEXT, Modality.IMAGE, Modality.DOCUMENT)
    return [lag_sensor(REQUEST_JOBS[each], settings, f"{each.value} requests") for each in modalities]
