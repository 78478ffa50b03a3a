"""What a message holds that should hold a JSON object and does not, where its bytes say so for certain.

Called by those who decode requests, for the reason that a dead letter gives.
"""

from pydantic_core import from_json

#: Some editors and libraries put it before UTF-8; JSON has none, and readers may pass it over (RFC 8259, section 8.1).
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_AS_JSON = "produce the JSON object itself, in UTF-8"
_COMPRESSED = f"{_AS_JSON}; the producer's `compression.type` compresses, and consumers do not see it"
_SERIALIZER = f"{_AS_JSON}, with a serializer for text or bytes"

#: First bytes -> what bytes are that begin with them, and the remedy. No JSON text begins so.
_BEGINNINGS = (
    (b"\x1f\x8b", "compressed with gzip", _COMPRESSED),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", _COMPRESSED),
    (b"\x04\x22\x4d\x18", "compressed with LZ4", _COMPRESSED),
    (b"\xff\x06\x00\x00sNaPpY", "compressed with Snappy", _COMPRESSED),
    (b"\x82SNAPPY\x00", "compressed with Snappy", _COMPRESSED),
    (b"\x78\x9c", "compressed with zlib", _COMPRESSED),
    (b"\x78\xda", "compressed with zlib", _COMPRESSED),
    (b"PK\x03\x04", "a zip archive", _AS_JSON),
    (b"Obj\x01", "an Avro file", _SERIALIZER),
    (b"\xc3\x01", "an Avro object", _SERIALIZER),
    (b"\xac\xed\x00\x05", "a serialised object of Java", _SERIALIZER),
    (b"\x80\x03", "a pickled object of Python", _SERIALIZER),
    (b"\x80\x04", "a pickled object of Python", _SERIALIZER),
    (b"\x80\x05", "a pickled object of Python", _SERIALIZER),
    (b"%PDF-", "a PDF file", "produce a request whose `data` has the file in base64, or its URI"),
)
_REGISTRY_BYTES = 5
#: Those of AWS Glue: its version, how the rest is compressed, and the id of the schema.
_GLUE = ((b"\x03\x00", 18), (b"\x03\x05", 18))
_UTF_16 = (b"\xff\xfe", b"\xfe\xff", b"{\x00", b"\x00{")
#: First bytes of a map of a few entries.
_MESSAGE_PACK = (*range(0x81, 0x90), 0xDE, 0xDF)
_CBOR = (*range(0xA1, 0xBA), 0xBF)


def other_form(value: bytes) -> str | None:
    """Return what a message's value is instead of a JSON object, and what to do; None where nothing says so."""
    found = _framed(value) or _binary(value)
    return _other_json(value) if found is None else f"the value is no valid JSON: it {found}"


def _framed(value: bytes) -> str | None:
    """Return what a serializer of a schema registry has made."""
    if value[:1] == b"\x00" and len(value) > _REGISTRY_BYTES and value[1:2] != b"{":
        schema = int.from_bytes(value[1:_REGISTRY_BYTES])
        holds = "JSON" if value[_REGISTRY_BYTES:].lstrip()[:1] == b"{" else "what is no JSON (Avro or Protobuf)"
        return (
            f"begins with the five bytes of a schema registry (schema {schema}), and {holds} follows: use a serializer "
            "without a registry, such as Kafka's own for strings or bytes, on UTF-8 JSON"
        )
    if any(value.startswith(mark) and len(value) > length for mark, length in _GLUE):
        return "begins with the bytes of AWS Glue's schema registry: use a serializer without a registry, on UTF-8 JSON"
    return None


def _binary(value: bytes) -> str | None:
    for beginning, kind, remedy in _BEGINNINGS:
        if value.startswith(beginning):
            return f"is {kind}: {remedy}"
    if value.startswith(_UTF_16) and len(value) > 2:
        return f"is UTF-16: {_AS_JSON}"
    names_a_field = b"task_type" in value[:4096] or b"data" in value[:4096]
    if value[:1] and names_a_field:
        if value[0] in _MESSAGE_PACK:
            return f"is MessagePack: {_SERIALIZER}"
        if value[0] in _CBOR:
            return f"is CBOR: {_SERIALIZER}"
        if int.from_bytes(value[:4], "little") == len(value) and value.endswith(b"\x00"):
            return f"is BSON: {_SERIALIZER}"
    return None


def _other_json(value: bytes) -> str | None:
    """Return what JSON is that holds a request, and is none."""
    is_text = value.lstrip()[:2] == b'"{'
    if not is_text and not (b'"schema"' in value and b'"payload"' in value):
        return None
    try:
        content = from_json(value)
    except ValueError:
        return None
    if isinstance(content, str):
        return f"the value is a JSON text with JSON in it, which was encoded twice: {_AS_JSON}"
    if isinstance(content, dict) and set(content) == {"schema", "payload"}:
        return (
            "the value is an envelope of Kafka Connect, with `schema` and `payload`: set "
            "`value.converter.schemas.enable=false` in the connector"
        )
    return None
