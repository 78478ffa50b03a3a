"""Messages that a test sends to the installed chart, and what became of them."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.deploy.kubernetes.installation import Installation, until
from tests.pipeline.requests.installation import install, text_request
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.runs.tags import TOPIC_TAG
from vectorize_pipelines.settings import StoreSettings

_COLLECTION = "texts"
_PREFIX = "vectorize"


class Messages:
    """Requests for texts whose ids begin with `name`, in the one topic of all tests; `folder` is this helper's own."""

    def __init__(self, installation: Installation, store: StoreSettings, name: str, folder: Path):
        self._installation = installation
        self._name = name
        self._requests = install(folder, installation.bootstrap_servers, _PREFIX, store=store.model_dump())
        self._number = 0

    def send(self, number: int) -> None:
        """Send so many more."""
        first, self._number = self._number, self._number + number
        self._requests.send(
            *(text_request(f"{self._name}-{n}", f"Lamp {n} of {self._name}") for n in range(first, self._number))
        )

    def run_at_work(self) -> dict[str, Any]:
        """Wait for a run that reads them; return it."""
        tags = [{"key": TOPIC_TAG, "value": self._requests.names.requests(Modality.TEXT)}]

        def look() -> dict[str, Any] | None:
            return next(iter(self._installation.runs(tags=tags, statuses=["STARTED"])), None)

        found: dict[str, Any] = until("a run over messages", look, 120, self._installation.cluster)
        return found

    def wait_for_rows(self) -> None:
        """Wait until something of what was sent is stored."""
        until("rows of messages", self._rows, 120, self._installation.cluster)

    def check_each_has_one_result(self) -> None:
        """Wait until every message has a result, and check that it has no other one, and one row."""
        expected = {f"{self._name}-{n}": ["completed"] for n in range(self._number)}

        def are_all_told() -> bool:
            return expected.keys() <= self._requests.final_events().keys() and not self._requests.outstanding()

        until(f"{self._number} results", are_all_told, 240, self._installation.cluster)
        told = {name: states for name, states in self._requests.final_events().items() if self._is_of_these(name)}
        assert told == expected
        assert sorted(self._rows()) == sorted(expected)
        assert not self._requests.letters()

    def _rows(self) -> list[str]:
        """Return the message of each row."""
        with suppress(CollectionNotFoundError):
            batches = self._requests.store.scan(_COLLECTION, ("source_id",))
            return [name for each in batches for name in each["source_id"].to_pylist() if self._is_of_these(name)]
        return []

    def _is_of_these(self, task_id: str) -> bool:
        return task_id.startswith(f"{self._name}-")
