"""Requests as they lie in the topics: from a message's bytes to a `Request`, or to an error that names the field.

The JSON is what users write against: `RequestModel` is its schema, `decode` the one way in.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from vectorize_pipelines.core.items import MAX_METADATA_DEPTH, JsonValue, MetadataLimits, Modality
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.messaging.content_types import (
    ANY_BYTES,
    CONTENT_TYPES,
    DEFAULT_CONTENT_TYPE,
    decoded_content,
)
from vectorize_pipelines.messaging.other_forms import BYTE_ORDER_MARK, other_form
from vectorize_pipelines.settings import COLLECTION_NAME

SCHEMA_VERSION = 1
MAX_BATCH = 10_000
MAX_TASK_ID = 512
MAX_PRIORITY = 2**31 - 1
#: Of an address; what is inside of a data: URI is bounded as content is.
MAX_URI = 8192
#: For who does not know the settings of whoever reads the request.
METADATA_LIMITS = MetadataLimits(max_bytes=64 * 1024, max_values=1000)
#: Metadata may have so many times the bytes that they have in their message: a short number is written out.
_REWRITTEN = 8
PRIORITY_NAMES = {"low": 0, "normal": 0, "high": 1}


class TaskType(StrEnum):
    """The kinds of requests."""

    TEXT = "text_vectorization"
    IMAGE = "image_vectorization"
    DOCUMENT = "document_vectorization"
    BATCH = "batch_vectorization"


TASK_TYPE_OF = {
    Modality.TEXT: TaskType.TEXT,
    Modality.IMAGE: TaskType.IMAGE,
    Modality.DOCUMENT: TaskType.DOCUMENT,
}
_KNOWN_TASK_TYPES = ", ".join(TaskType)


class InvalidMessageError(ItemError):
    """A message that is no request; the text begins with the field. `task_id` is None where it could not be read."""

    def __init__(self, field: str, problem: str, task_id: str | None = None) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.task_id = task_id


@dataclass(frozen=True, slots=True)
class Origin:
    """The place of a message. `timestamp_ms` is the message's own time, in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int

    @property
    def version(self) -> tuple[int, str, int, int]:
        """The order of the messages of one `task_id`: the greatest counts."""
        return (self.timestamp_ms, self.topic, self.partition, self.offset)


def origin_of(message: ReceivedMessage) -> Origin:
    """Return where a message stands."""
    return Origin(message.topic(), message.partition(), message.offset(), message.timestamp()[1])


@dataclass(frozen=True, slots=True)
class InlineDocument:
    """A document that the message itself holds: text, or bytes where it came in base64."""

    content: str | bytes
    title: str | None
    content_type: str
    metadata: Mapping[str, JsonValue]

    @property
    def name(self) -> str:
        """The name of a file of that kind; its title where the content type says nothing of the kind."""
        if self.content_type == ANY_BYTES:
            return self.title or "document"
        return f"document{CONTENT_TYPES[self.content_type][0]}"


@dataclass(frozen=True, slots=True)
class RequestItem:
    """One thing to embed. `content` of a text: the text; of an image: a URI; of a document: a URI or the document."""

    modality: Modality
    content: str | InlineDocument


@dataclass(frozen=True, slots=True)
class Request:
    """A valid message.

    chunk  of a text: whether it is cut into passages, as a document is; None: as the settings say
    """

    task_id: str
    task_type: TaskType
    items: tuple[RequestItem, ...]
    model_name: str | None
    collection: str | None
    priority: int
    batch_size: int | None
    metadata: Mapping[str, JsonValue]
    callback_url: str | None
    origin: Origin
    chunk: bool | None = None


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A null value: what was stored under `task_id` is to be deleted."""

    task_id: str
    origin: Origin


def _task_id(value: str) -> str:
    if not 1 <= len(value) <= MAX_TASK_ID:
        raise ValueError(f"must have 1 to {MAX_TASK_ID} characters, not {len(value)}")
    if not value.isprintable():
        raise ValueError("must be printable text without line breaks and control characters")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def _callback_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        complete = False
    if not complete or not value.isprintable() or " " in value:
        raise ValueError("must be an http:// or https:// URL with a host")
    return value


def _priority(value: Any) -> int:
    if isinstance(value, str) and value in PRIORITY_NAMES:
        return PRIORITY_NAMES[value]
    if type(value) is not int or not 0 <= value <= MAX_PRIORITY:
        raise ValueError(f"must be a whole number from 0 to {MAX_PRIORITY}, or low, normal or high")
    return value


class RequestModel(BaseModel):
    """The JSON of a message, but for `data`, whose form follows from `task_type`. Null counts as not given."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    task_type: str
    data: Any
    task_id: Annotated[str, AfterValidator(_task_id)] | None = None
    version: int | None = None
    model_name: Annotated[str, Field(max_length=512), AfterValidator(_not_blank)] | None = None
    collection: Annotated[str, Field(pattern=COLLECTION_NAME)] | None = None
    priority: Annotated[Any, AfterValidator(lambda value: 0 if value is None else _priority(value))] = 0
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    metadata: dict[str, Any] | None = None
    callback_url: Annotated[str, Field(max_length=2048), AfterValidator(_callback_url)] | None = None
    chunk: bool | None = None


class _InlineDocumentModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    content: Annotated[str, AfterValidator(_not_blank)]
    title: Annotated[str, Field(max_length=1024)] | None = None
    content_type: str | None = None
    metadata: dict[str, Any] | None = None


_validate_json = RequestModel.__pydantic_validator__.validate_json


def decode(
    value: bytes | None,
    key: bytes | None,
    origin: Origin,
    modality: Modality,
    limits: MetadataLimits = METADATA_LIMITS,
) -> Request | Tombstone:
    """The request in a message on a topic of `modality`, or the deletion that a null value stands for.

    `limits` bound the metadata of the request, and of each document in it. Where key and `task_id` differ, `task_id`
    counts; without one it is `topic/partition/offset`.
    Raises `InvalidMessageError` naming the field, such as `data[3].task_type`; nothing else, whatever the bytes.
    """
    if value is None:
        return _tombstone(key, origin)
    value = value.removeprefix(BYTE_ORDER_MARK)
    try:
        message: RequestModel = _validate_json(value)
    except ValidationError as error:
        raise explain_value(value, error, _find_task_id(value, key)) from None
    task_id = message.task_id or f"{origin.topic}/{origin.partition}/{origin.offset}"
    try:
        # Nothing in a short message can be too much, and most messages are short.
        bounds = limits if len(value) > min(2 * limits.max_values, limits.max_bytes // _REWRITTEN) else None
        task_type, items = _items(message, modality, bounds)
        if message.chunk is not None:
            _check_chunk(task_type)
        metadata = _checked_metadata(message.metadata, "metadata", bounds)
    except InvalidMessageError as error:
        error.task_id = message.task_id or task_id_of(key)
        raise
    return Request(
        task_id,
        task_type,
        items,
        message.model_name,
        message.collection,
        message.priority,
        message.batch_size,
        metadata,
        message.callback_url,
        origin,
        message.chunk,
    )


def _tombstone(key: bytes | None, origin: Origin) -> Tombstone:
    if not key:
        raise InvalidMessageError("key", "is missing, and a null value deletes what its key names")
    try:
        return Tombstone(_task_id(key.decode()), origin)
    except UnicodeDecodeError:
        raise InvalidMessageError("key", "must be UTF-8, as it names what a null value deletes") from None
    except ValueError as error:
        raise InvalidMessageError("key", str(error)) from None


def _items(
    message: RequestModel, modality: Modality, limits: MetadataLimits | None
) -> tuple[TaskType, tuple[RequestItem, ...]]:
    if message.version is not None and message.version != SCHEMA_VERSION:
        _refuse("version", f"is {message.version}, and this installation understands {SCHEMA_VERSION}")
    task_type = _task_type(message.task_type, "task_type")
    if task_type is not TaskType.BATCH:
        _check_topic(task_type, modality, "task_type")
        return task_type, (_item(message.data, modality, "data", limits),)
    entries = message.data
    if not isinstance(entries, list):
        _refuse("data", f"must be a list for {TaskType.BATCH}, not {_kind(entries)}")
    if not 1 <= len(entries) <= MAX_BATCH:
        _refuse("data", f"must have 1 to {MAX_BATCH:,} entries, not {len(entries):,}")
    return task_type, tuple(_entry(entry, modality, f"data[{place}]", limits) for place, entry in enumerate(entries))


def _entry(entry: Any, modality: Modality, field: str, limits: MetadataLimits | None) -> RequestItem:
    """An entry of a batch: `data` of the topic's own kind, or an object that says which kind it is."""
    if not isinstance(entry, dict) or (modality is Modality.DOCUMENT and "task_type" not in entry):
        return _item(entry, modality, field, limits)
    unknown = next((name for name in entry if name not in ("task_type", "data")), None)
    if unknown is not None:
        _refuse(f"{field}.{_shown(unknown)}", "is not a field of an entry; its fields are task_type and data")
    for name in ("task_type", "data"):
        if name not in entry:
            _refuse(f"{field}.{name}", "is missing")
    task_type = _task_type(entry["task_type"], f"{field}.task_type")
    if task_type is TaskType.BATCH:
        _refuse(f"{field}.task_type", "a batch cannot hold another batch")
    _check_topic(task_type, modality, f"{field}.task_type")
    return _item(entry["data"], modality, f"{field}.data", limits)


def _item(data: Any, modality: Modality, field: str, limits: MetadataLimits | None) -> RequestItem:
    if isinstance(data, str):
        if not data or data.isspace():
            _refuse(field, "must not be blank")
        if modality is not Modality.TEXT and len(data) > MAX_URI and not data.lower().startswith("data:"):
            _refuse(field, f"must be a URI of at most {MAX_URI:,} characters, not {len(data):,}")
        return RequestItem(modality, data)
    if modality is Modality.DOCUMENT and isinstance(data, dict):
        return RequestItem(modality, _inline_document(data, field, limits))
    wanted = {
        Modality.TEXT: "a string",
        Modality.IMAGE: "a URI",
        Modality.DOCUMENT: "a URI, or an object with content",
    }[modality]
    return _refuse(field, f"must be {wanted}, not {_kind(data)}")


def _inline_document(data: dict[str, Any], field: str, limits: MetadataLimits | None) -> InlineDocument:
    try:
        document = _InlineDocumentModel.model_validate(data)
    except ValidationError as error:
        raise explain(error, None, field) from None
    content_type = (document.content_type or DEFAULT_CONTENT_TYPE).partition(";")[0].strip().lower()
    if content_type not in CONTENT_TYPES and content_type != ANY_BYTES:
        _refuse(f"{field}.content_type", _unsupported(content_type))
    try:
        content, content_type = decoded_content(document.content, content_type)
    except ValueError:
        _refuse(f"{field}.content", f"must be base64 for {content_type}")
    metadata = _checked_metadata(document.metadata, f"{field}.metadata", limits)
    return InlineDocument(content, document.title, content_type, metadata)


def _unsupported(content_type: str) -> str:
    remedy = (
        f"send images as {TaskType.IMAGE}"
        if content_type.startswith("image/")
        else f"give the type of the document's format, such as text/html or application/pdf, or {ANY_BYTES} for a "
        "document in base64 whose mark, or the ending of its title, tells the format"
    )
    return f"{_shown(content_type)} is not supported; {remedy}"


def _task_type(value: Any, field: str) -> TaskType:
    try:
        return TaskType(value)
    except ValueError:
        return _refuse(field, f"{_shown(value)} is not known; known are {_KNOWN_TASK_TYPES}")


def _check_topic(task_type: TaskType, modality: Modality, field: str) -> None:
    if task_type is not TASK_TYPE_OF[modality]:
        _refuse(
            field,
            f"{task_type} does not belong on the topic for {modality.value}, which takes {TASK_TYPE_OF[modality]} "
            f"and {TaskType.BATCH}",
        )


def _check_chunk(task_type: TaskType) -> None:
    reasons = {
        TaskType.IMAGE: "an image is not cut",
        TaskType.DOCUMENT: "a document is always cut",
        TaskType.BATCH: "the rows of a batch are numbered as its entries are; send a text that is to be cut by itself",
    }
    if task_type in reasons:
        _refuse("chunk", f"is for {TaskType.TEXT}: {reasons[task_type]}")


def _checked_metadata(
    value: dict[str, Any] | None, field: str, limits: MetadataLimits | None
) -> Mapping[str, JsonValue]:
    """`limits` is None where the message is too short to exceed them."""
    if not value:
        return {}
    _check_numbers(value, field)
    if limits is not None and (excess := limits.excess(value)) is not None:
        _refuse(
            field,
            f"{excess}: shorten it, or raise kafka.max_metadata_bytes (VECTORIZE_KAFKA__MAX_METADATA_BYTES) or "
            "kafka.max_metadata_values",
        )
    return value


def _check_numbers(value: Any, field: str, depth: int = 1) -> None:
    """Refuse numbers that no store keeps, and structures that are nested too deeply."""
    if depth > MAX_METADATA_DEPTH and isinstance(value, (dict, list)):
        _refuse(field, f"is nested more than {MAX_METADATA_DEPTH} levels deep; flatten it")
    if isinstance(value, dict):
        for name, each in value.items():
            if type(each) is not str:
                _check_numbers(each, f"{field}.{_shown(name)}", depth + 1)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            _check_numbers(each, f"{field}[{place}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        _refuse(field, "must be a finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        _refuse(field, "must fit into 64 bits")


def explain_value(value: bytes, error: ValidationError, task_id: str | None) -> InvalidMessageError:
    """Return what is wrong with a message's whole value: what it is instead of JSON where that is certain."""
    form = other_form(value)
    return explain(error, task_id) if form is None else InvalidMessageError("", form, task_id)


def explain(error: ValidationError, task_id: str | None, above: str = "") -> InvalidMessageError:
    """Return the first thing that is wrong, in our words. `above`: the field that what was checked stands in."""
    problem = error.errors(include_url=False, include_input=False)[0]
    field = above + "".join(f"[{part}]" if isinstance(part, int) else f".{_shown(part)}" for part in problem["loc"])
    kinds = {
        "missing": "is missing",
        "extra_forbidden": "is not a field of a request" if not above else "is not a field of a document",
        "value_error": problem["msg"].removeprefix("Value error, "),
        "model_type": "the value must be a JSON object",
        "string_pattern_mismatch": f"must match {COLLECTION_NAME}",
        "json_invalid": f"the value is no valid JSON: {problem['msg'].removeprefix('Invalid JSON: ')}",
    }
    return InvalidMessageError(field.removeprefix("."), kinds.get(problem["type"], problem["msg"]), task_id)


def _find_task_id(value: bytes, key: bytes | None) -> str | None:
    """The `task_id` of a message with something else wrong, or its key."""
    try:
        message = from_json(value)
        found = message.get("task_id") if isinstance(message, dict) else None
        return _task_id(found) if isinstance(found, str) else task_id_of(key)
    except ValueError:
        return task_id_of(key)


def task_id_of(key: bytes | None) -> str | None:
    """The request that a message is about, by its key alone; None where that names none."""
    try:
        return _task_id(key.decode()) if key else None
    except ValueError:
        return None


def _kind(value: Any) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def _shown(value: Any) -> str:
    """A value from outside as an error may repeat it: short, printable."""
    text = value if isinstance(value, str) else _kind(value)
    text = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text[:80])
    return text if len(text) < 80 else f"{text}…"


def _refuse(field: str, problem: str) -> NoReturn:
    raise InvalidMessageError(field, problem)
