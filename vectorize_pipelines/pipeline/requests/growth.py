"""The memory that messages grow to on their way: estimated before they are taken together, so that it has a bound.

Called by `decoding`, for what a message says of itself, and by `reader`, for the
passages of a document, of which nobody knows how many there are before it is cut.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from vectorize_pipelines.core.items import Item, metadata_size
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.messaging.messages import InvalidMessageError, Request
from vectorize_pipelines.pipeline.requests.batches import Entry
from vectorize_pipelines.pipeline.requests.pending import PendingRequest

#: What a row takes beside its vector, text and metadata.
ROW_BYTES = 512
#: Of the vectors, where the model is not known yet.
USUAL_DIMENSION = 1024
#: A row's vector and text are held by its item or batch and by its record, the metadata also by what the store writes.
VECTOR_COPIES, TEXT_COPIES, METADATA_COPIES = 2, 2, 3
BYTES_OF_A_NUMBER = 4
#: JSON of nothing but small values takes so many times its bytes while it is read.
JSON_GROWTH = 16
_ONE_ROW = ROW_BYTES + VECTOR_COPIES * BYTES_OF_A_NUMBER * USUAL_DIMENSION
SETTING = "kafka.drain.batch_bytes (VECTORIZE_KAFKA__DRAIN__BATCH_BYTES)"

_Entry = TypeVar("_Entry", bound=Entry)


class RequestGrowthError(ItemError):
    """A request has few bytes, and its rows many: it alone would take more memory than messages may together."""


def message_growth(message: ReceivedMessage) -> int:
    """The bytes that reading a message may take."""
    return JSON_GROWTH * len(message.value() or b"") + len(message.key() or b"") + ROW_BYTES


def request_growth(request: Request) -> int:
    """The bytes that a request's rows take, without what is fetched for them, and as if a document were one row."""
    rows = len(request.items)
    if rows == 1:  # most are; what its message has bounds its text and its metadata
        content = request.items[0].content
        return _ONE_ROW + (TEXT_COPIES * len(content) if isinstance(content, str) else 0)
    texts = sum(len(item.content) for item in request.items if isinstance(item.content, str))
    metadata = metadata_size(request.metadata) if request.metadata else 0
    return rows * _row(USUAL_DIMENSION, metadata) + TEXT_COPIES * texts


def items_growth(items: Sequence[Item], dimension: int) -> int:
    """The bytes that items, without the contents of images, take as rows."""
    sizes: dict[int, int] = {}
    total = 0
    for item in items:
        metadata = item.metadata
        size = sizes.get(id(metadata))
        if size is None:
            size = sizes[id(metadata)] = metadata_size(metadata)
        total += _row(dimension, size) + TEXT_COPIES * len(item.text or "")
    return total


def check_message(message: ReceivedMessage, most: int) -> None:
    """Raise `InvalidMessageError` for a message too large to be looked into: it may be compressed in Kafka."""
    size = len(message.value() or b"")
    if message_growth(message) > most:
        raise InvalidMessageError(
            "",
            f"the value has {size:,} bytes, which may take {JSON_GROWTH} times as much memory; send it in several "
            f"requests, name large contents by URI, or raise {SETTING}",
        )


def check_request(request: Request, most: int) -> None:
    """Raise `RequestGrowthError` for too many rows. One row is less than what reading its message took."""
    if len(request.items) > 1:
        check_growth(len(request.items), request_growth(request), most)


def check_growth(rows: int, growth: int, most: int) -> None:
    """Raise `RequestGrowthError` where a request alone takes more than messages may together."""
    if growth > most:
        raise RequestGrowthError(
            f"its {rows:,} rows, each with its vector and all of the metadata, would take about {growth:,} bytes of "
            f"memory; {most:,} are allowed: send it in several requests, shorten its metadata, or raise {SETTING}"
        )


def in_portions(messages: Sequence[ReceivedMessage], most: int) -> Iterator[Sequence[ReceivedMessage]]:
    """The messages in portions that grow to at most so many bytes while they are read; a larger one by itself."""
    begin = size = 0
    for place, message in enumerate(messages):
        growth = message_growth(message)
        if size and size + growth > most:
            yield messages[begin:place]
            begin, size = place, 0
        size += growth
    yield messages[begin:]


def in_parts(entries: Sequence[_Entry], most: int) -> Iterator[Sequence[_Entry]]:
    """The entries in parts whose rows grow to at most so many bytes; what exceeds that by itself has failed."""
    begin = size = 0
    for place, entry in enumerate(entries):
        growth = (
            request_growth(entry.request) if isinstance(entry, PendingRequest) and entry.error is None else ROW_BYTES
        )
        if size and size + growth > most:
            yield entries[begin:place]
            begin, size = place, 0
        size += growth
    yield entries[begin:]


def _row(dimension: int, metadata: int) -> int:
    return ROW_BYTES + VECTOR_COPIES * BYTES_OF_A_NUMBER * dimension + METADATA_COPIES * metadata
