"""Reports of what became of requests: to the ledger, in a drain run also to Kafka and whoever asked to be called.

Called by `requests.stream`: `taken_up` before anything is done, `finished` once the store has all that it is
to have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from threading import Lock

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.messaging.callbacks import CallbackDelivery, callback_row
from vectorize_pipelines.messaging.cancellations import Cancellations
from vectorize_pipelines.messaging.dead_letters import DeadLetter
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.messaging.messages import origin_of
from vectorize_pipelines.messaging.outcomes import EventProducer, OutcomeProducer, Outcomes
from vectorize_pipelines.pipeline.requests.pending import InvalidMessage, PendingRequest, occurred
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import ERROR_CHARACTERS, RequestRow

#: In which stage a message failed, as its dead letter says it.
DECODING = "decode"
EMBEDDING = "embed"


class Report:
    """The report to the ledger: all that there is for a replay, which answers nobody."""

    def __init__(self, ledger: RequestLedger, modality: Modality, run_id: str, cancellations: Cancellations | None):
        self._ledger = ledger
        self._modality = modality
        self._run_id = run_id
        self._cancellations = cancellations
        self._refreshing = Lock()

    def taken_up(self, requests: Sequence[PendingRequest], *, noted: bool) -> None:
        """Called for each batch of messages before anything is done for it. Raises `KafkaError` and `LedgerError`.

        `noted`: whether the batch takes so long that the ledger should say that it is being processed.
        """
        self.refresh()

    def refresh(self) -> None:
        """Learn what has been cancelled; called by any thread. Raises `KafkaError`."""
        if self._cancellations is not None:
            with self._refreshing:
                self._cancellations.refresh()

    def cancelled(self, pending: PendingRequest) -> bool:
        """Return whether a request is cancelled; asked before its content is fetched, and before it is written."""
        if self._cancellations is None:
            return False
        return self._cancellations.cancelled(pending.request.task_id, pending.request.origin.timestamp_ms)

    def advanced(self, requests: Sequence[PendingRequest]) -> None:
        """Called now and then for requests that take long, with `done` of their rows encoded. Raises `LedgerError`.

        A replay does not tell: its requests have ended before.
        """

    def finished(
        self,
        requests: Sequence[PendingRequest],
        invalid: Sequence[InvalidMessage],
        positions: Mapping[PartitionId, int],
    ) -> None:
        """Called once all of a batch is in the store. Killed before it returns, the batch is dealt with again."""
        # What was cancelled after a drain run had completed it is left as that run noted it.
        self._record([pending for pending in requests if not self._is_known(pending)], invalid)

    def _is_known(self, pending: PendingRequest) -> bool:
        return pending.state is RequestState.CANCELLED and self._ledger.get(pending.request.task_id) is not None

    def _record(self, requests: Sequence[PendingRequest], invalid: Sequence[InvalidMessage]) -> None:
        rows = [self._row(pending) for pending in requests]
        rows += [self._invalid_row(each, each.task_id) for each in invalid if each.task_id is not None]
        self._ledger.record(rows)

    def _note(self, requests: Sequence[PendingRequest]) -> None:
        self._ledger.record([self._row(pending) for pending in requests])

    def standing(self) -> str:
        """The offsets up to which the topics have been acknowledged, for the log."""
        return ""

    def _row(self, pending: PendingRequest) -> RequestRow:
        request, origin = pending.request, pending.request.origin
        tokens, truncated = pending.tokens_told
        return RequestRow(
            request_id=request.task_id,
            state=pending.state,
            modality=self._modality,
            submitted_at=pending.occurred_at,
            topic=origin.topic,
            partition=origin.partition,
            offset=origin.offset,
            timestamp_ms=origin.timestamp_ms,
            collection=pending.collection,
            started_at=pending.started_at,
            finished_at=datetime.now(UTC) if pending.state.is_final else None,
            run_id=self._run_id,
            items=len(request.items),
            vectors=pending.vectors,
            tokens=tokens,
            error_class=type(pending.error).__name__ if pending.error is not None else None,
            error_message=str(pending.error) if pending.error is not None else None,
            task_type=request.task_type.value,
            done=len(pending.items) if pending.state is RequestState.COMPLETED else pending.done,
            known=len(pending.items),
            metadata=request.metadata,
            truncated=truncated,
            warnings=pending.warnings,
        )

    def _invalid_row(self, invalid: InvalidMessage, task_id: str) -> RequestRow:
        """A message that is no request, but says whose: who asks for that request shall hear of it."""
        origin, now = origin_of(invalid.message), datetime.now(UTC)
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
            error_class=type(invalid.error).__name__,
            error_message=str(invalid.error),
        )


class SingleReport(Report):
    """The report on a request that was no message: to the ledger, also while it is processed, and to whoever asked."""

    def __init__(self, ledger: RequestLedger, modality: Modality, run_id: str, callbacks: CallbackDelivery):
        super().__init__(ledger, modality, run_id, None)
        self._callbacks = callbacks

    def taken_up(self, requests: Sequence[PendingRequest], *, noted: bool) -> None:
        self._note(requests)

    def advanced(self, requests: Sequence[PendingRequest]) -> None:
        self._note(requests)

    def finished(
        self,
        requests: Sequence[PendingRequest],
        invalid: Sequence[InvalidMessage],
        positions: Mapping[PartitionId, int],
    ) -> None:
        super().finished(requests, invalid, positions)
        self._call([(pending, _event(pending, self._run_id)) for pending in requests])

    def abandoned(self, pending: PendingRequest, error: Exception | None) -> None:
        """The request ended before its rows were written: with an error it failed, without one it was cancelled."""
        pending.state = RequestState.CANCELLED if error is None else RequestState.FAILED
        row, event = self._row(pending), _event(pending, self._run_id)
        if error is not None:
            row = replace(row, error_class=type(error).__name__, error_message=str(error))
            event = replace(event, error=_told(error))
        self._ledger.record([row])
        self._call([(pending, event)])

    def _call(self, ended: Sequence[tuple[PendingRequest, ResultEvent]]) -> None:
        calls = [
            callback_row(pending.request.callback_url, event, pending.request.origin)
            for pending, event in ended
            if pending.request.callback_url is not None
        ]
        if calls:
            self._callbacks.enqueue(calls)
            self._callbacks.deliver_soon()


class TopicReport(Report):
    """The report on messages: to the ledger, then to Kafka in one transaction, then to those who asked to be called."""

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
        self._positions: dict[PartitionId, int] = {}

    def taken_up(self, requests: Sequence[PendingRequest], *, noted: bool) -> None:
        super().taken_up(requests, noted=noted)
        if noted:
            self._note(requests)
        self._events.send([_event(pending, self._run_id) for pending in requests])

    def advanced(self, requests: Sequence[PendingRequest]) -> None:
        self._note(requests)

    def finished(
        self,
        requests: Sequence[PendingRequest],
        invalid: Sequence[InvalidMessage],
        positions: Mapping[PartitionId, int],
    ) -> None:
        self._record(requests, invalid)
        events = [_event(pending, self._run_id) for pending in requests]
        events += [_invalid_event(each, self._run_id) for each in invalid if each.task_id is not None]
        calls = [
            callback_row(pending.request.callback_url, event, pending.request.origin)
            for pending, event in zip(requests, events, strict=False)
            if pending.request.callback_url is not None
        ]
        self._callbacks.enqueue(calls)
        letters = [
            self._letter(pending.message, pending.error, EMBEDDING)
            for pending in requests
            if pending.state is RequestState.FAILED and pending.error is not None and pending.message is not None
        ]
        letters += [self._letter(each.message, each.error, DECODING) for each in invalid]
        self._outcomes.send(Outcomes(events, letters, positions), self._group_metadata)
        self._positions.update(positions)
        if calls:
            self._callbacks.deliver_soon()

    def standing(self) -> str:
        return " ".join(f"{topic}/{number}:{offset}" for (topic, number), offset in sorted(self._positions.items()))

    def _letter(self, message: ReceivedMessage, error: ItemError, stage: str) -> DeadLetter:
        place = origin_of(message)
        return DeadLetter.of(place, message.key(), message.value(), message.headers(), error, stage, self._run_id)


def _event(pending: PendingRequest, run_id: str) -> ResultEvent:
    error = None if pending.error is None else _told(pending.error)
    return ResultEvent(
        task_id=pending.request.task_id,
        status=pending.state,
        collection=pending.collection,
        vector_count=pending.vectors,
        error=error,
        run_id=run_id,
        timestamp=datetime.now(UTC),
        warnings=pending.warnings,
        truncated=pending.tokens_told[1],
    )


def _told(error: Exception) -> dict[str, str]:
    return {"class": type(error).__name__, "message": str(error)[:ERROR_CHARACTERS]}


def _invalid_event(invalid: InvalidMessage, run_id: str) -> ResultEvent:
    return ResultEvent(
        task_id=invalid.task_id or invalid.place,
        status=RequestState.FAILED,
        collection=None,
        vector_count=0,
        error=_told(invalid.error),
        run_id=run_id,
        timestamp=datetime.now(UTC),
    )
