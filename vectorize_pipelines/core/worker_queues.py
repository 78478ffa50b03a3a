"""The queues by which workers on several hosts share the runs of an installation: a worker takes from those it names.

Used by the launcher of runs and the worker, by their settings, and by the HTTP server, which counts what waits.
"""

#: Queue -> the runs in it.
QUEUES = {
    "text": "text requests",
    "image": "image requests, and the gallery",
    "document": "document requests, and the corpus",
    "assessment": "tasks and assessments of camera detections",
    "general": "everything else: maintenance, reports, another model for a collection",
    "gpu-large": "runs that name it by the tag `vectorize/queue`: for models that few machines have room for",
}
#: The queue of runs that no other one is for.
GENERAL = "general"
#: Begins the keys of Celery's in Redis: the list of a queue is `vectorize:celery:text`.
KEY_PREFIX = "vectorize:celery:"


def queue_key(queue: str) -> str:
    """Return the key of the Redis list in which a queue's runs wait for a worker."""
    return KEY_PREFIX + queue
