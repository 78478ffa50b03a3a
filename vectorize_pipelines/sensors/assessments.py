"""The sensors for detections and for groups to be assessed that wait in Kafka: `detections_lag`, `assessments_lag`."""

import dagster as dg

from vectorize_pipelines.jobs import STREAM_JOBS
from vectorize_pipelines.kafka.followed import ASSESSMENTS, DETECTIONS
from vectorize_pipelines.sensors.following import lag_sensor
from vectorize_pipelines.settings import Settings


def assessment_sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """Return the sensors that launch drain runs of `assessment_tasks` and of `risk_assessments`."""
    waiting = {DETECTIONS: "detections", ASSESSMENTS: "groups to be assessed"}
    return [lag_sensor(STREAM_JOBS[name], settings, messages) for name, messages in waiting.items()]
