"""The order of states: no client sees a request go back, whatever comes late or twice.

Called by `live.sources` for the results topic, and by `gateway.routes.live` for the client of one request.
"""

from collections import OrderedDict

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.messaging.events import ResultEvent

#: Requests whose last event is remembered.
REMEMBERED = 10_000
_RANK = {RequestState.PENDING: 0, RequestState.PROCESSING: 1}
_FINAL_RANK = 2


def leads_on(event: ResultEvent, last: ResultEvent) -> bool:
    """Return whether an event leads on from the last that a client has got of a request which has not ended."""
    if event.status.is_final:
        return True
    return _rank(event) >= _rank(last) and (event.status, event.run_id) != (last.status, last.run_id)


class EventOrder:
    """A filter for events of the results topic: only those that lead on pass, judged by their own times.

    Events of what is under way are sent beside the transactions of the final ones, and may come after these. They do
    not say which of several messages with the same id they are of: one that was made after the end of the earlier
    message is of a later one. A final event always counts, unless it is the same once more.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        #: Task id -> its event with the latest time, the longest untouched first.
        self._latest: OrderedDict[str, ResultEvent] = OrderedDict()

    def admits(self, event: ResultEvent) -> bool:
        """Return whether clients are to get an event; each is asked about once, as it comes."""
        last = self._latest.get(event.task_id)
        if last is not None and not _follows(event, last):
            return False
        if last is None or event.timestamp >= last.timestamp:
            self._latest[event.task_id] = event
        self._latest.move_to_end(event.task_id)
        if len(self._latest) > self._remembered:
            self._latest.popitem(last=False)
        return True


def _follows(event: ResultEvent, last: ResultEvent) -> bool:
    same = (event.status, event.run_id) == (last.status, last.run_id)
    if event.status.is_final:
        return not (same and event.timestamp == last.timestamp)
    if event.timestamp == last.timestamp:
        return _rank(event) > _rank(last)
    return event.timestamp > last.timestamp and not same


def _rank(event: ResultEvent) -> int:
    return _RANK.get(event.status, _FINAL_RANK)
