"""Values out of documents as clean text and clean JSON. Used by every format."""

import math
import re
import unicodedata
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from vectorize_pipelines.core.items import JsonValue, metadata_size
from vectorize_pipelines.documents.errors import CorruptDocumentError, TooMuchMetadataError
from vectorize_pipelines.settings import DocumentSettings

MAX_METADATA_VALUES = 10_000
MAX_INTEGER_BITS = 4096
#: Of a heading, a title or an author.
MAX_LABEL_CHARACTERS = 500

#: By their category letters, symbols and marks, but shown as nothing: fillers, joiners, variation selectors.
INVISIBLE_LETTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufffc") | frozenset(
    map(chr, (*range(0xFE00, 0xFE10), *range(0x180B, 0x1810), *range(0xE0100, 0xE01F0)))
)

_PDF_DATE = re.compile(
    r"(?:D:)?(?P<year>\d{4})(?P<month>\d\d)?(?P<day>\d\d)?(?P<hour>\d\d)?(?P<minute>\d\d)?(?P<second>\d\d)?"
    r"(?:(?P<utc>Z)(?:00'?(?:00)?)?|(?P<sign>[+-])(?P<offset_hours>\d\d)'?(?P<offset_minutes>\d\d)?)?"
)


def clean_text(text: str) -> str:
    """Return the text with `\\n` line ends, without NUL, and with surrogates paired or replaced.

    A lone surrogate cannot be encoded: neither tokenizers nor Arrow take such a string.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def is_blank(text: str) -> bool:
    """Return whether nothing of the text is seen: spaces, and characters without width such as U+200B and U+FEFF."""
    return all(character.isspace() or _is_invisible(character) for character in text.strip())


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf") or character in INVISIBLE_LETTERS


def one_line(text: str) -> str:
    """Return the text with every run of whitespace as one space, none at the ends."""
    return " ".join(text.split())


def short_label(text: str) -> str:
    """Return a name of at most `MAX_LABEL_CHARACTERS`: it stands in the metadata of every passage below it."""
    return text if len(text) <= MAX_LABEL_CHARACTERS else f"{text[: MAX_LABEL_CHARACTERS - 1].rstrip()}…"


def check_metadata(metadata: Mapping[str, JsonValue], settings: DocumentSettings, what: str, remedy: str = "") -> int:
    """Raise `TooMuchMetadataError` for more than a record may carry; returns the bytes that it takes.

    `what` names it in the error, `remedy` says what helps beside the settings.
    """
    try:
        size = metadata_size(metadata)
    except RecursionError as error:
        raise CorruptDocumentError("its metadata is nested too deeply; flatten it") from error
    if (excess := settings.metadata_limits.excess(metadata, size)) is not None:
        raise TooMuchMetadataError(
            f"{what} {excess}; {remedy}raise VECTORIZE_DOCUMENTS__MAX_METADATA_BYTES or "
            "VECTORIZE_DOCUMENTS__MAX_METADATA_VALUES where it is meant"
        )
    return size


def json_fields(fields: Mapping[Any, Any]) -> dict[str, JsonValue]:
    """Return the fields as JSON values under string keys; what has no value (None, NaN, NaT, blank text) is left out.

    Raises `CorruptDocumentError` where they unfold to more than `MAX_METADATA_VALUES` values: a few bytes of
    YAML can describe a structure of billions.
    """
    cleaned = json_value(fields)
    assert isinstance(cleaned, dict)
    return {key: value for key, value in cleaned.items() if value is not None and value != ""}


def json_value(value: Any) -> JsonValue:
    """Return the value as JSON: dates in ISO 8601, None for what is missing and for bytes, anything else as text."""
    try:
        return _json_value(value, [MAX_METADATA_VALUES])
    except RecursionError as error:
        raise CorruptDocumentError("its metadata is nested too deeply; flatten it") from error


def _json_value(value: Any, budget: list[int]) -> JsonValue:
    budget[0] -= 1
    if budget[0] < 0:
        raise CorruptDocumentError(f"its metadata has more than {MAX_METADATA_VALUES} values; shorten it")
    if isinstance(value, Mapping):
        return {_json_key(key): _json_value(member, budget) for key, member in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_json_value(member, budget) for member in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return _json_value(value.tolist(), budget)
    return _json_scalar(value)


def _json_key(key: Any) -> str:
    if isinstance(key, int) and key.bit_length() > MAX_INTEGER_BITS:
        raise CorruptDocumentError("its metadata has a number of thousands of digits as a name; shorten it")
    return clean_text(str(key))


def _json_scalar(value: Any) -> JsonValue:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else _large_integer(value)
    # By name, because pandas' NA and NaT are no reason to import it.
    if value is None or isinstance(value, (bytes, bytearray)) or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, (float, Decimal)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return clean_text(str(value))


def _large_integer(value: int) -> str | None:
    """Return it as text, which no reader of JSON rounds; None beyond what Python itself turns into text."""
    return str(value) if value.bit_length() <= MAX_INTEGER_BITS else None


def iso_date(value: object) -> str | None:
    """Return ISO 8601 of a date in metadata: a datetime, an ISO text or PDF's `D:20240131…`; else None."""
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:  # which Python does not turn into text
        return None
    text = str(value or "").strip()
    for kind in (date, datetime):
        try:
            return kind.fromisoformat(text).isoformat()
        except ValueError:
            continue
    return _pdf_date(text)


def _pdf_date(text: str) -> str | None:
    match = _PDF_DATE.fullmatch(text.rstrip("'"))
    if match is None:
        return None
    part = match.groupdict()
    zone = ""
    if part["utc"] or part["sign"]:
        zone = f"{part['sign'] or '+'}{part['offset_hours'] or '00'}:{part['offset_minutes'] or '00'}"
    try:
        return datetime.fromisoformat(
            f"{part['year']}-{part['month'] or '01'}-{part['day'] or '01'}"
            f"T{part['hour'] or '00'}:{part['minute'] or '00'}:{part['second'] or '00'}{zone}"
        ).isoformat()
    except ValueError:
        return None
