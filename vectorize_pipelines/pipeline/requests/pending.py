"""Messages on their way through a run: valid requests, with what becomes of them, and messages that are no request.

Made by `decoding` in the reading thread; `requests.reader` gives a request its items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from vectorize_pipelines.core.items import Item
from vectorize_pipelines.core.notices import Notice, limited
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.messaging.messages import Origin, Request
from vectorize_pipelines.pipeline.requests.targets import Target

#: The last day of the year 9999, after which Python has no times.
LATEST_MS = 253_402_214_400_000


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A valid request on its way to its end.

    message   as it came; None for a request that was no message
    day       the partition of its rows
    occurred_at, started_at   its own time, and when it was taken up
    target    None until it is known
    models    of each item, the fingerprint that its record carries
    held_bytes  of fetched contents, and of the rows that documents grow to, in its items
    notices   what of its contents is not in the items, and what was guessed
    tokens    of its texts that were embedded, once they have been counted
    truncated  tokens of its texts that their model does not take
    same_as   a newer message of the same task and content, whose rows are this one's
    done      rows that are known to have their vectors, while a large request is encoded
    vectors   rows that the store has of it at the end
    """

    request: Request
    message: ReceivedMessage | None
    day: str
    occurred_at: datetime
    started_at: datetime
    target: Target | None = None
    items: list[Item] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    held_bytes: int = 0
    state: RequestState = RequestState.PROCESSING
    error: ItemError | None = None
    notices: list[Notice] = field(default_factory=list)
    tokens: int = 0
    truncated: int = 0
    same_as: "PendingRequest | None" = None
    done: int = 0
    vectors: int = 0

    def add(self, items: Sequence[Item], model: str, growth: int = 0) -> None:
        """Append items, all of them for the same model; `growth` is what those of a document take."""
        self.items.extend(items)
        self.models.extend([model] * len(items))
        self.held_bytes += growth + sum(len(item.content) for item in items if isinstance(item.content, bytes))

    @property
    def told(self) -> tuple[Notice, ...]:
        """What to say of it once it has rows: of a batch there may be any number of notices."""
        notices = (self.same_as or self).notices
        return limited(notices) if notices and self.vectors else ()

    @property
    def warnings(self) -> tuple[dict[str, str], ...]:
        """The same as result events and the ledger have it."""
        return tuple(each.as_dict() for each in told) if (told := self.told) else ()

    @property
    def tokens_told(self) -> tuple[int, int]:
        """Tokens of it that were embedded, and of its texts that were not, once it has rows."""
        told = self.same_as or self
        embedded = told.tokens or sum(item.tokens for item in told.items)
        return (embedded, told.truncated) if self.vectors else (0, 0)

    def forget_items(self) -> None:
        """Drop the items: the request has failed, or has been acknowledged."""
        self.items, self.models, self.held_bytes = [], [], 0

    def fail(self, error: ItemError) -> None:
        """End the request: nothing of it is written, what the store has of an earlier version stays."""
        # Its trace would keep what its functions had in hand, the request's contents among it.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self.state, self.error = RequestState.FAILED, error

    @property
    def collection(self) -> str | None:
        """The collection of its rows, as far as that is known."""
        return self.target.collection if self.target is not None else self.request.collection


@dataclass(frozen=True, slots=True)
class InvalidMessage:
    """A message that is no request. `task_id` is None where it could not be read."""

    message: ReceivedMessage
    error: ItemError
    task_id: str | None
    day: str

    @property
    def place(self) -> str:
        """The place of the message, as its failure is named."""
        return f"{self.message.topic()}/{self.message.partition()}/{self.message.offset()}"


def occurred(origin: Origin) -> datetime:
    """The message's own time; 1970 or the year 9999 for one outside of them, which a sender may have written there."""
    return datetime.fromtimestamp(min(max(origin.timestamp_ms, 0), LATEST_MS) / 1000, UTC)
