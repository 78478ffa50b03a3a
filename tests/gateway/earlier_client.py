"""A client as users of the earlier master have it: its calls, fields and names, with the address as the one argument.

    python -m tests.gateway.earlier_client http://localhost:8000

It knows nothing of this project: what it sends and reads is not to be changed together with the server. It prints what
it got, a JSON object for each call.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import requests

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_SECONDS = 30


class MasterClient:
    """The calls of the earlier master's API."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._session = requests.Session()

    def submit(self, data: Any, task_type: str = "text_vectorization", **fields: Any) -> Any:
        """Submit one task."""
        return self._call("POST", "/tasks/submit", json={"task_type": task_type, "data": data, **fields})

    def submit_many(self, tasks: list[dict[str, Any]]) -> Any:
        """Submit many tasks by one call."""
        return self._call("POST", "/tasks/batch", json=tasks)

    def task(self, task_id: str) -> Any:
        """Look up a task."""
        return self._call("GET", f"/tasks/{task_id}")

    def tasks(self, **filters: Any) -> Any:
        """List tasks."""
        return self._call("GET", "/tasks", params=filters)

    def cancel(self, task_id: str) -> Any:
        """Cancel a task."""
        return self._call("DELETE", f"/tasks/{task_id}")

    def health(self) -> Any:
        """Ask how the server is."""
        return self._call("GET", "/health")

    def metrics(self) -> Any:
        """Ask for the figures."""
        return self._call("GET", "/metrics")

    def _call(self, method: str, path: str, **content: Any) -> Any:
        """What comes back, whatever its status: the earlier master's clients looked into the JSON."""
        return self._session.request(method, self._address + path, timeout=_SECONDS, **content).json()


def session(address: str) -> Iterator[tuple[str, Any]]:
    """Everything that the earlier master's own script did, one call after the other."""
    client = MasterClient(address)
    yield "health", client.health()
    one = client.submit("a text to try the vectors with", model_name=MODEL, priority=1)
    yield "submitted", one
    yield "task", client.task(one["task_id"])
    yield "batch of texts", client.submit(["the first", "the second", "the third"], "batch_vectorization", batch_size=2)
    yield "image", client.submit("https://example.com/boat.jpg", "image_vectorization", model_name="ViT-B/32")
    yield "document", client.submit("https://example.com/log.pdf", "document_vectorization", metadata={"tenant": "a"})
    numbered = [
        client.submit(f"text {n} of ten", priority=n % 3 + 1, metadata={"batch_id": "ten", "index": n})
        for n in range(10)
    ]
    yield "numbered", [client.task(each["task_id"])["status"] for each in numbered]
    many = [{"task_type": "text_vectorization", "data": f"text {n}", "callback_url": None} for n in range(3)]
    yield "many", client.submit_many(many)
    yield "page", client.tasks(page=1, page_size=10)
    yield "waiting", client.tasks(status_filter="pending", page=2, page_size=5)
    yield "cancelled", client.cancel(numbered[0]["task_id"])
    yield "an empty text", client.submit("")
    yield "a type that is none", client.submit("a text", "invalid_type")
    yield "an unknown task", client.task("non-existent-task-id")
    yield "metrics", client.metrics()


if __name__ == "__main__":
    for call, answer in session(sys.argv[1]):
        print(json.dumps({"call": call, "answer": answer}))
