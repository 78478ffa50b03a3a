"""Result events: what became of a request, as the results topic says it. The key of each is its `task_id`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from vectorize_pipelines.core.request_state import RequestState


class _ErrorModel(BaseModel):
    error_class: Annotated[str, Field(alias="class")]
    message: str


class _WarningModel(BaseModel):
    kind: str
    what: str
    remedy: str


class _EventModel(BaseModel):
    """The base of events; fields of later versions are passed over."""

    model_config = ConfigDict(extra="ignore")

    task_id: str
    status: RequestState
    collection: str | None = None
    vector_count: int = 0
    error: _ErrorModel | None = None
    run_id: str | None = None
    timestamp: datetime
    warnings: list[_WarningModel] = []
    truncated: int = 0


# Not frozen, as little as `ledger.RequestRow`.
@dataclass(slots=True)
class ResultEvent:
    """One change of a request's state. `error` is None or has `class` and `message`; `timestamp` is in UTC.

    warnings   what of a completed request is not embedded, and what was guessed: each has `kind`, `what` and `remedy`
    truncated  tokens of its texts that were left out, since the model takes no more
    """

    task_id: str
    status: RequestState
    collection: str | None = None
    vector_count: int = 0
    error: dict[str, str] | None = None
    run_id: str | None = None
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    warnings: Sequence[Mapping[str, str]] = ()
    truncated: int = 0

    def to_json(self) -> bytes:
        """Return the message's value."""
        content = self.as_dict()
        # A task id may hold half a character, which UTF-8 has no form for.
        content["task_id"] = self.task_id.encode("utf-8", "replace").decode()
        return to_json(content)

    def as_dict(self) -> dict[str, Any]:
        """Return the event as the JSON has it."""
        return {
            "task_id": self.task_id,
            "status": self.status.value,
            "collection": self.collection,
            "vector_count": self.vector_count,
            "error": self.error,
            "run_id": self.run_id,
            "timestamp": self.timestamp.isoformat(),
            "warnings": list(self.warnings),
            "truncated": self.truncated,
        }

    @classmethod
    def from_json(cls, value: bytes) -> "ResultEvent":
        """Return the event in a message's value. Raises `ValueError` where it is none."""
        try:
            event = _EventModel.model_validate_json(value)
        except ValidationError as error:
            raise ValueError(f"no result event: {error.errors(include_url=False, include_input=False)[0]}") from None
        problem = None if event.error is None else {"class": event.error.error_class, "message": event.error.message}
        return cls(
            event.task_id,
            event.status,
            event.collection,
            event.vector_count,
            problem,
            event.run_id,
            event.timestamp,
            tuple(each.model_dump() for each in event.warnings),
            event.truncated,
        )
