"""What is told of requests, and to whom: the ledger, and in a drain run also Kafka and those who asked to be called.

Called by `pipeline.request_stream`: `taken_up` before anything is done, `finished` once the store has all that it is
to have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import Lock

from vectorize_pipelines.errors import ItemError, VectorizeError
from vectorize_pipelines.items import Modality
from vectorize_pipelines.ledger import ERROR_CHARACTERS, RequestLedger, RequestRow
from vectorize_pipelines.messaging.callbacks import CallbackDelivery, CallbackRow
from vectorize_pipelines.messaging.control import Cancellations
from vectorize_pipelines.messaging.dead_letters import DeadLetter
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.messaging.messages import ReceivedMessage, origin_of
from vectorize_pipelines.messaging.outcomes import EventProducer, OutcomeProducer, Outcomes
from vectorize_pipelines.pipeline.requests import Work, occurred
from vectorize_pipelines.request_state import RequestState
from vectorize_pipelines.sources.kafka import Place

#: In which stage a message failed, as its dead letter says it.
DECODING = "decode"
EMBEDDING = "embed"


@dataclass(frozen=True, slots=True)
class Poison:
    """A message that is no request. `task_id` is None where it could not be read."""

    message: ReceivedMessage
    error: ItemError
    task_id: str | None
    day: str

    @property
    def place(self) -> str:
        """Where it lies."""
        return f"{self.message.topic()}/{self.message.partition()}/{self.message.offset()}"


class Report:
    """Tells the ledger. That is all for a replay, which answers nobody, and for a request that was no message."""

    def __init__(self, ledger: RequestLedger, modality: Modality, run_id: str, cancellations: Cancellations | None):
        self._ledger = ledger
        self._modality = modality
        self._run_id = run_id
        self._cancellations = cancellations
        self._refreshing = Lock()

    def taken_up(self, works: Sequence[Work], *, noted: bool) -> None:
        """Called for each unit before anything is done for it. Raises `KafkaError` and `LedgerError`.

        `noted`: whether the unit takes so long that the ledger should say that it is being processed.
        """
        self.refresh()

    def refresh(self) -> None:
        """Learns what has been cancelled; called by any thread. Raises `KafkaError`."""
        if self._cancellations is not None:
            with self._refreshing:
                self._cancellations.refresh()

    def cancelled(self, work: Work) -> bool:
        """Whether a request has been cancelled; asked before its content is fetched, and again before it is written."""
        if self._cancellations is None:
            return False
        return self._cancellations.cancelled(work.request.task_id, work.request.origin.timestamp_ms)

    def finished(self, works: Sequence[Work], poison: Sequence[Poison], positions: Mapping[Place, int]) -> None:
        """Called once all of a unit is in the store. Killed before it returns, the unit is dealt with again."""
        # What was cancelled after a drain run had completed it is left as that run noted it.
        self._record([work for work in works if not self._is_known(work)], poison)

    def _is_known(self, work: Work) -> bool:
        return work.state is RequestState.CANCELLED and self._ledger.get(work.request.task_id) is not None

    def _record(self, works: Sequence[Work], poison: Sequence[Poison]) -> None:
        rows = [self._row(work) for work in works]
        rows += [self._poison_row(each, each.task_id) for each in poison if each.task_id is not None]
        self._ledger.record(rows)

    def standing(self) -> str:
        """How far the topics have been acknowledged, for the log."""
        return ""

    def _row(self, work: Work) -> RequestRow:
        request, origin = work.request, work.request.origin
        return RequestRow(
            request_id=request.task_id,
            state=work.state,
            modality=self._modality,
            submitted_at=work.occurred_at,
            topic=origin.topic,
            partition=origin.partition,
            offset=origin.offset,
            timestamp_ms=origin.timestamp_ms,
            collection=work.collection,
            started_at=work.started_at,
            finished_at=datetime.now(UTC) if work.state.is_final else None,
            run_id=self._run_id,
            items=len(request.items),
            vectors=work.vectors,
            tokens=sum(item.tokens for item in work.items) if work.vectors else 0,
            error_class=type(work.error).__name__ if work.error is not None else None,
            error_message=str(work.error) if work.error is not None else None,
        )

    def _poison_row(self, poison: Poison, task_id: str) -> RequestRow:
        """A message that is no request, but says whose: who asks for that request shall hear of it."""
        origin, now = origin_of(poison.message), datetime.now(UTC)
        return RequestRow(
            request_id=task_id,
            state=RequestState.FAILED,
            modality=self._modality,
            submitted_at=occurred(origin),
            topic=origin.topic,
            partition=origin.partition,
            offset=origin.offset,
            timestamp_ms=origin.timestamp_ms,
            started_at=now,
            finished_at=now,
            run_id=self._run_id,
            error_class=type(poison.error).__name__,
            error_message=str(poison.error),
        )


class SingleReport(Report):
    """Tells the ledger of a request that was no message, also while it is being processed, and calls who asked."""

    def __init__(self, ledger: RequestLedger, modality: Modality, run_id: str, callbacks: CallbackDelivery):
        super().__init__(ledger, modality, run_id, None)
        self._callbacks = callbacks

    def taken_up(self, works: Sequence[Work], *, noted: bool) -> None:
        self._ledger.record([self._row(work) for work in works])

    def finished(self, works: Sequence[Work], poison: Sequence[Poison], positions: Mapping[Place, int]) -> None:
        super().finished(works, poison, positions)
        self._call([(work, _event(work, self._run_id)) for work in works])

    def abandoned(self, work: Work, error: VectorizeError | None) -> None:
        """The request ended before its rows were written: with an error it failed, without one it was cancelled."""
        work.state = RequestState.CANCELLED if error is None else RequestState.FAILED
        row, event = self._row(work), _event(work, self._run_id)
        if error is not None:
            row = replace(row, error_class=type(error).__name__, error_message=str(error))
            event = replace(event, error=_told(error))
        self._ledger.record([row])
        self._call([(work, event)])

    def _call(self, ended: Sequence[tuple[Work, ResultEvent]]) -> None:
        calls = [
            CallbackRow(work.request.callback_url, event, work.request.origin)
            for work, event in ended
            if work.request.callback_url is not None
        ]
        if calls:
            self._callbacks.enqueue(calls)
            self._callbacks.deliver_soon()


class TopicReport(Report):
    """Tells the ledger, then Kafka in one transaction, then those who asked to be called."""

    def __init__(
        self,
        ledger: RequestLedger,
        modality: Modality,
        run_id: str,
        cancellations: Cancellations,
        *,
        outcomes: OutcomeProducer,
        events: EventProducer,
        callbacks: CallbackDelivery,
        group_metadata: object,
    ):
        """`outcomes` for what is final, `events` for what is under way."""
        super().__init__(ledger, modality, run_id, cancellations)
        self._outcomes = outcomes
        self._events = events
        self._callbacks = callbacks
        self._group_metadata = group_metadata
        self._positions: dict[Place, int] = {}

    def taken_up(self, works: Sequence[Work], *, noted: bool) -> None:
        super().taken_up(works, noted=noted)
        if noted:
            self._ledger.record([self._row(work) for work in works])
        self._events.send([_event(work, self._run_id) for work in works])

    def finished(self, works: Sequence[Work], poison: Sequence[Poison], positions: Mapping[Place, int]) -> None:
        self._record(works, poison)
        events = [_event(work, self._run_id) for work in works]
        events += [_poison_event(each, self._run_id) for each in poison if each.task_id is not None]
        calls = [
            CallbackRow(work.request.callback_url, event, work.request.origin)
            for work, event in zip(works, events, strict=False)
            if work.request.callback_url is not None
        ]
        self._callbacks.enqueue(calls)
        letters = [
            self._letter(work.message, work.error, EMBEDDING)
            for work in works
            if work.state is RequestState.FAILED and work.error is not None and work.message is not None
        ]
        letters += [self._letter(each.message, each.error, DECODING) for each in poison]
        self._outcomes.send(Outcomes(events, letters, positions), self._group_metadata)
        self._positions.update(positions)
        if calls:
            self._callbacks.deliver_soon()

    def standing(self) -> str:
        return " ".join(f"{topic}/{number}:{offset}" for (topic, number), offset in sorted(self._positions.items()))

    def _letter(self, message: ReceivedMessage, error: ItemError, stage: str) -> DeadLetter:
        place = origin_of(message)
        return DeadLetter.of(place, message.key(), message.value(), message.headers(), error, stage, self._run_id)


def _event(work: Work, run_id: str) -> ResultEvent:
    error = None if work.error is None else _told(work.error)
    return ResultEvent(
        task_id=work.request.task_id,
        status=work.state,
        collection=work.collection,
        vector_count=work.vectors,
        error=error,
        run_id=run_id,
        timestamp=datetime.now(UTC),
    )


def _told(error: VectorizeError) -> dict[str, str]:
    return {"class": type(error).__name__, "message": str(error)[:ERROR_CHARACTERS]}


def _poison_event(poison: Poison, run_id: str) -> ResultEvent:
    return ResultEvent(
        task_id=poison.task_id or poison.place,
        status=RequestState.FAILED,
        collection=None,
        vector_count=0,
        error=_told(poison.error),
        run_id=run_id,
        timestamp=datetime.now(UTC),
    )
