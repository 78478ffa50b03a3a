"""Outcomes of calls of an encoder: vectors, or an error, for each request that has contents in one.

Called by `batching`, in its threads.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from vectorize_pipelines.encoders.base import Encoder, Purpose, TokenCount
from vectorize_pipelines.errors import ItemError, VectorizeError
from vectorize_pipelines.gateway.encoding.lane import NO_TOKENS, Call, Content, Encoded, EncodingRequest, Share

logger = logging.getLogger(__name__)


class EncoderFailedError(VectorizeError):
    """A loaded model failed for no reason that its caller could do anything about; the log of the server has it."""


#: A request, the positions of its contents in the call, and what has come of them.
Outcome: TypeAlias = tuple[EncodingRequest, list[int], Encoded | VectorizeError]


def perform(call: Call, shares: Sequence[Share] | None = None) -> Iterator[Outcome]:
    """Encode a call, or some shares of it. Where that fails for all, each is tried alone: the fault is that of one."""
    shares = call.shares if shares is None else shares
    contents = [request.contents[position] for request, positions in shares for position in positions]
    try:
        metered = call.encoder.encode_metered(contents, call.purpose)
        vectors, failures = metered.vectors, metered.errors
        tokens = metered.counts or _token_counts(call.encoder, contents, call.purpose)
    except BaseException as error:  # noqa: BLE001 (told to the caller; Rust's panics are no Exception)
        if len(shares) > 1:
            for share in shares:
                yield from perform(call, [share])
        else:
            yield (*shares[0], for_callers(error, call.lane.model))
        return
    start = 0
    for request, positions in shares:
        rows = range(start, start := start + len(positions))
        failed = next((row for row in rows if row in failures), None)
        if failed is not None:
            yield request, positions, _of_one(request, positions[failed - rows.start], failures[failed])
        elif not np.isfinite(vectors[rows.start : rows.stop]).all():
            yield (
                request,
                positions,
                EncoderFailedError(f"the model {call.lane.model} made vectors that are no numbers"),
            )
        else:
            yield request, positions, (vectors[rows.start : rows.stop], tokens[rows.start : rows.stop])


def _token_counts(encoder: Encoder, contents: Sequence[Content], purpose: Purpose) -> list[TokenCount]:
    """Return the tokens of texts for an engine that does not tell them when it encodes."""
    texts = [content for content in contents if isinstance(content, str)]
    counts = iter(encoder.count_tokens(texts, purpose))
    return [TokenCount(next(counts), 0) if isinstance(content, str) else NO_TOKENS for content in contents]


def _of_one(request: EncodingRequest, position: int, error: ItemError) -> ItemError:
    """The error of one content of a request, which says which one where there are several."""
    return error if len(request.contents) == 1 else type(error)(f"item {position}: {error}")


def for_callers(error: BaseException, model: str) -> VectorizeError:
    """Return an error that callers may see; the log has what they may not."""
    if isinstance(error, VectorizeError):
        return error
    logger.error("the model %s failed", model, exc_info=error)
    return EncoderFailedError(f"the model {model} failed; the log of the server has the reason")
