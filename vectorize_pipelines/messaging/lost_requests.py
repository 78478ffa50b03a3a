"""Requests that no run will take up any more, since their messages are gone: they are noted as failed.

A request that was submitted over HTTP is in the ledger from the moment at which the brokers have its message. Where
that is deleted before a run reads it (the retention of its topic has passed, or the topic was deleted), nobody else
would ever say what became of it. Called by the daily clean-up.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import FINAL_STATES, RequestState
from vectorize_pipelines.errors import KafkaError, VectorizeError
from vectorize_pipelines.kafka.clients import admin
from vectorize_pipelines.kafka.lag import lags_of
from vectorize_pipelines.kafka.partitions import PartitionId, existing_partitions, offsets
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.settings import KafkaSettings
from vectorize_pipelines.state.ledger import RequestLedger, cursor_before
from vectorize_pipelines.state.request_rows import RequestRow

#: Requests that are looked at together.
ROWS_TOGETHER = 1000
_UNFINISHED = set(RequestState) - FINAL_STATES


class LostMessageError(VectorizeError):
    """The message of a request is gone, and no run has finished it."""


def fail_lost_requests(settings: KafkaSettings, ledger: RequestLedger, before: datetime) -> int:
    """Note as failed which requests are unfinished and have no message any more; return their number.

    before  only those that were submitted before then, and not taken up since

    Brokers are asked only where there are such requests. Raises `KafkaError` and `LedgerError`.
    """
    failed = 0
    after: str | None = cursor_before(before)
    while after is not None:
        page = ledger.page(_UNFINISHED, ROWS_TOGETHER, after)
        # First the rows, then the offsets: a run notes what became of a message before it commits its offset.
        old = [row for row in page.rows if not row.has_own_run and (row.started_at or row.submitted_at) < before]
        if old:
            failed += ledger.fail(_without_message(settings, old), _LOST, datetime.now(UTC))
        after = page.next
    return failed


_LOST = LostMessageError(
    "its message is gone, and no run has finished it: the retention of its topic (retention.ms) has passed, or the "
    "topic was deleted; send it again"
)


def _without_message(settings: KafkaSettings, rows: Sequence[RequestRow]) -> list[RequestRow]:
    unread = _unread_offsets(settings, {row.topic for row in rows})
    return [row for row in rows if not _may_be_read(row.offset, unread.get((row.topic, row.partition), range(0)))]


def _may_be_read(offset: int, unread: range) -> bool:
    """Return whether a message may be among these offsets: any of them may be its own where its own is not known."""
    return bool(unread) if offset < 0 else offset in unread


def _unread_offsets(settings: KafkaSettings, topics: Collection[str]) -> dict[PartitionId, range]:
    """Return the offsets that drain runs have still to read of each partition; a topic that is gone has none.

    Raises `KafkaError`, also where the brokers have none of the topics for requests: then they are not those that have
    the messages, and nothing is known of these.
    """
    client = admin(settings)
    names = TopicNames(settings.topic_prefix)
    own = {lane for modality in Modality for lane in names.lanes(modality)}
    places = existing_partitions(settings, own | set(topics), client)
    if own.isdisjoint(topic for topic, _ in places):
        raise KafkaError(f"{settings.bootstrap_servers} has no topics for requests: is it the right cluster?")
    places = [place for place in places if place[0] in topics]
    ends = offsets(settings, places, latest=True, client=client, with_open=True) if places else {}
    lags = lags_of(settings, places, client)
    return {(lag.topic, lag.partition): range(lag.unread.start, ends[lag.topic, lag.partition]) for lag in lags}
