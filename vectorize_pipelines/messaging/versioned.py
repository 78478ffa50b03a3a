"""The base of messages that are JSON objects with a version: from bytes or a dict to a checked object, and back.

A field that a message does not know is passed over, so that senders may be newer than readers; a change that readers
have to understand makes another version, which they refuse.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from vectorize_pipelines.messaging.messages import InvalidMessageError, explain_value
from vectorize_pipelines.messaging.other_forms import BYTE_ORDER_MARK

VERSION = 1
MAX_NAME = 512


def _known(version: int) -> int:
    if version != VERSION:
        raise ValueError(f"is {version}, and this installation understands {VERSION}")
    return version


def _name(value: str) -> str:
    if not 1 <= len(value) <= MAX_NAME:
        raise ValueError(f"must have 1 to {MAX_NAME} characters, not {len(value)}")
    if not value.isprintable():
        raise ValueError("must be printable text without line breaks and control characters")
    return value


def _moment(value: Any) -> datetime:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        raise ValueError("must be ISO 8601 text, or seconds since 1970, of the years 1 to 9999") from None


#: A name that stands in logs, keys and addresses.
Name = Annotated[str, AfterValidator(_name)]
#: A time in UTC. Read from ISO 8601 text, taken for UTC where it names no zone, or from seconds since 1970; written as
#: ISO 8601 text.
Moment = Annotated[datetime, BeforeValidator(_moment), PlainSerializer(datetime.isoformat, when_used="json")]
#: Of a number of JSON that has to be one: neither infinite nor NaN.
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Message(BaseModel):
    """A message of a topic, or a part of one."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    def to_dict(self) -> dict[str, Any]:
        """Return it as its JSON has it: plain dicts, lists, texts and numbers."""
        return self.model_dump(mode="json")

    def to_json(self) -> bytes:
        """Return its JSON: the value of a message in a topic."""
        return self.__pydantic_serializer__.to_json(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return what a dict as `to_dict` returns it stands for; its numbers may be numpy's.

        Raises `InvalidMessageError`, whose text begins with the field.
        """
        try:
            value = to_json(dict(content), fallback=_plain)
        except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
            raise InvalidMessageError("", f"the message cannot be written as JSON: {error}") from None
        return cls.from_json(value)

    @classmethod
    def from_json(cls, value: bytes) -> Self:
        """Return what is in a value. Raises `InvalidMessageError`; nothing else, whatever the bytes."""
        value = value.removeprefix(BYTE_ORDER_MARK)
        try:
            message: Self = cls.__pydantic_validator__.validate_json(value, strict=True)
        except ValidationError as error:
            raise explain_value(value, error, None) from None
        return message


class VersionedMessage(Message):
    """A whole message. `version` is that of its form."""

    version: Annotated[int, AfterValidator(_known)] = VERSION


def _plain(value: Any) -> Any:
    """Return the list or number that an array or number of numpy stands for. Raises `TypeError` for anything else."""
    convert = getattr(value, "tolist", None)
    if convert is None:
        raise TypeError(f"a {type(value).__name__} has no form in JSON")
    return convert()
