"""The tokens of texts in requests: how many were embedded, and how many their model did not take.

Called by `encoding` in the encoding thread. What was encoded has been counted by its engine; what had its vector
already is counted by the model's tokenizer, without the model.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vectorize_pipelines.core.notices import omitted, row_fields, within
from vectorize_pipelines.encoders import load_token_counter
from vectorize_pipelines.encoders.base import CountTokens, TokenCount
from vectorize_pipelines.encoders.configured import describe_options
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.messaging.messages import TaskType
from vectorize_pipelines.pipeline.requests.pending import PendingRequest
from vectorize_pipelines.pipeline.requests.targets import Target
from vectorize_pipelines.settings import Settings

logger = logging.getLogger(__name__)

_REMEDY = "send it with chunk: true, or set VECTORIZE_DOCUMENTS__CHUNK_LONG_TEXTS=true"
_REMEDY_IN_BATCH = "send this text by itself, with chunk: true"


class TextTokens:
    """The counting of one run. Used by one thread."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._counters: dict[str, CountTokens | None] = {}

    def note(self, target: Target, requests: Sequence[PendingRequest], counts: Mapping[int, TokenCount]) -> None:
        """Note at requests of texts for one model what was embedded of them, and what was not, in their rows, too.

        `counts`: those that are known, by position among the items of all requests. A request that is noted again, as
        after a rehearsal, gets the same.
        """
        counted = self._complete(target, requests, counts)
        place = 0
        for pending in requests:
            of_request = counted[place : place + len(pending.items)]
            place += len(of_request)
            pending.tokens = sum(count.seen for count in of_request)
            pending.truncated = sum(count.cut for count in of_request)
            pending.notices = []
            if pending.truncated and pending.error is None:
                self._tell(pending, of_request)

    def _complete(
        self, target: Target, requests: Sequence[PendingRequest], counts: Mapping[int, TokenCount]
    ) -> list[TokenCount]:
        """Return the counts of all items; a passage of a text that was cut has its own."""
        found: list[TokenCount] = []
        unknown: dict[int, str] = {}
        for pending in requests:
            for item in pending.items:
                count = counts.get(len(found), TokenCount(item.tokens, 0))
                if not count.seen and item.text is not None and pending.error is None:
                    unknown[len(found)] = item.text
                found.append(count)
        counter = self._counter(target) if unknown else None
        if counter is not None:
            for n, count in zip(unknown, counter(list(unknown.values())), strict=True):
                found[n] = count
        return found

    def _counter(self, target: Target) -> CountTokens | None:
        """Return what counts the tokens of a model's texts; None where that cannot be had, though its vectors are."""
        if target.model not in self._counters:
            try:
                self._counters[target.model] = load_token_counter(target.model, **describe_options(self._settings))
            except VectorizeError as error:
                logger.warning(
                    "tokens of texts that need not be encoded are not counted, nor what is cut off: %s", error
                )
                self._counters[target.model] = None
        return self._counters[target.model]

    def _tell(self, pending: PendingRequest, counts: Sequence[TokenCount]) -> None:
        """Note what was cut off: at the request, and in the metadata of the rows that it was cut off of."""
        is_batch = pending.request.task_type is TaskType.BATCH
        for n, count in enumerate(counts):
            if not count.cut:
                continue
            what = (
                f"{count.cut:,} of {count.seen + count.cut:,} tokens are left out, since the model takes {count.seen:,}"
            )
            notice = omitted(what, _REMEDY_IN_BATCH if is_batch else _REMEDY)
            metadata = row_fields((notice,), pending.request.metadata, self._settings.kafka.metadata_limits)
            pending.items[n] = replace(pending.items[n], metadata=metadata)
            pending.notices += within(f"data[{n}]", (notice,)) if is_batch else (notice,)
