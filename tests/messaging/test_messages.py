"""Requests: what a valid message becomes, and that any other bytes become an error that names the field."""

import base64
import gzip
import json
import pickle
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messaging.drawn_messages import encoded, json_values, messages
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.messaging.content_types import CONTENT_TYPES
from vectorize_pipelines.messaging.messages import (
    MAX_BATCH,
    InlineDocument,
    InvalidMessageError,
    Origin,
    Request,
    TaskType,
    Tombstone,
    decode,
)

ORIGIN = Origin("vectorize.text", 3, 14, 1_700_000_000_000)


@given(messages(), st.none() | st.binary(max_size=20))
def test_a_valid_message_comes_through_whole(drawn: tuple[Modality, dict[str, Any]], key: bytes | None) -> None:
    modality, message = drawn
    request = decode(encoded(message), key, ORIGIN, modality)
    assert isinstance(request, Request)
    assert request.task_id == (message.get("task_id") or "vectorize.text/3/14")
    assert request.task_type == message["task_type"]
    assert request.priority == {"high": 1, "normal": 0, "low": 0, None: 0}.get(
        message.get("priority"), message.get("priority")
    )
    for name in ("model_name", "collection", "batch_size", "callback_url"):
        assert getattr(request, name) == message.get(name)
    assert request.metadata == (message.get("metadata") or {})
    assert request.origin == ORIGIN
    given_items = message["data"] if request.task_type is TaskType.BATCH else [message["data"]]
    assert len(request.items) == len(given_items)
    for item, entry in zip(request.items, given_items, strict=True):
        data = entry["data"] if isinstance(entry, dict) and "task_type" in entry else entry
        assert item.modality is modality
        if isinstance(item.content, InlineDocument):
            assert (item.content.content, item.content.title) == (data["content"], data.get("title"))
            assert item.content.metadata == (data.get("metadata") or {})
            assert item.content.name == "document.txt"
        else:
            assert item.content == data


@given(st.none() | st.binary(), st.none() | st.binary(), st.sampled_from(Modality))
def test_any_bytes_are_a_request_or_an_error(value: bytes | None, key: bytes | None, modality: Modality) -> None:
    _decodes_or_is_refused(value, key, modality)


@given(st.data())
def test_a_mutated_message_is_a_request_or_an_error(data: st.DataObject) -> None:
    modality, message = data.draw(messages())
    value = bytearray(encoded(message))
    for place in data.draw(st.lists(st.integers(0, len(value) - 1), min_size=1, max_size=4)):
        value[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(value)))
    _decodes_or_is_refused(bytes(value), b"key", modality)
    _decodes_or_is_refused(bytes(value[:cut]), b"key", modality)


@given(messages(), st.data())
def test_a_field_of_another_kind_is_refused_by_name(
    drawn: tuple[Modality, dict[str, Any]], data: st.DataObject
) -> None:
    modality, message = drawn
    name = data.draw(st.sampled_from([*message, "no_such_field"]))
    message[name] = data.draw(json_values | st.just(float("nan")) | st.just(10**40))
    _decodes_or_is_refused(encoded(message), None, modality, within=name)


def _decodes_or_is_refused(value: bytes | None, key: bytes | None, modality: Modality, within: str = "") -> None:
    error = _refusal(value, key, modality)
    if error is not None:
        assert str(error).isprintable()
        assert len(str(error)) < 1000
        assert not within or not error.field or error.field.startswith((within, "data"))


def _refusal(value: bytes | None, key: bytes | None, modality: Modality) -> InvalidMessageError | None:
    try:
        result = decode(value, key, ORIGIN, modality)
    except InvalidMessageError as error:
        return error
    assert isinstance(result, Tombstone if value is None else Request)
    return None


def text_with(**fields: Any) -> dict[str, Any]:
    return {"task_type": "text_vectorization", "data": "a text", "task_id": "t-1", **fields}


BATCH = "batch_vectorization"


@pytest.mark.parametrize(
    ("message", "modality", "field", "said"),
    [
        ([], "text", "", "must be a JSON object"),
        ({"data": "x"}, "text", "task_type", "is missing"),
        ({"task_type": "text_vectorization"}, "text", "data", "is missing"),
        (text_with(data="  \n"), "text", "data", "blank"),
        (text_with(data=None), "text", "data", "must be a string, not null"),
        (text_with(data=["a"]), "text", "data", "must be a string, not a list"),
        (text_with(data={"content": "a"}), "text", "data", "must be a string, not an object"),
        (text_with(task_type="sing"), "text", "task_type", "sing is not known; known are text_vectorization"),
        (text_with(), "image", "task_type", "image_vectorization and batch_vectorization"),
        (text_with(task_type=BATCH), "text", "data", "must be a list"),
        (text_with(task_type=BATCH, data=[]), "text", "data", "1 to 10,000 entries"),
        (text_with(task_type=BATCH, data=["a"] * (MAX_BATCH + 1)), "text", "data", "not 10,001"),
        (text_with(task_type=BATCH, data=["a", ""]), "text", "data[1]", "blank"),
        (text_with(task_type=BATCH, data=["a", 3]), "text", "data[1]", "not a number"),
        (text_with(task_type=BATCH, data=[{"data": "a"}]), "text", "data[0].task_type", "is missing"),
        (text_with(task_type=BATCH, data=[{"task_type": BATCH, "data": []}]), "text", "data[0].task_type", "another"),
        (
            text_with(task_type=BATCH, data=["a", {"task_type": "image_vectorization", "data": "a"}]),
            *("text", "data[1].task_type", "image_vectorization does not belong on the topic for text"),
        ),
        (text_with(task_type=BATCH, data=[text_with(x=1)]), "text", "data[0].task_id", "is not a field of an entry"),
        (text_with(colour=1), "text", "colour", "is not a field of a request"),
        (text_with(version=2), "text", "version", "is 2, and this installation understands 1"),
        (text_with(task_id=""), "text", "task_id", "1 to 512 characters"),
        (text_with(task_id="x" * 513), "text", "task_id", "not 513"),
        (text_with(task_id="a\nb"), "text", "task_id", "printable"),
        (text_with(task_id=7), "text", "task_id", "string"),
        (text_with(collection="My Texts"), "text", "collection", "must match ^[a-z]"),
        (text_with(priority=-1), "text", "priority", "0 to 2147483647, or low, normal or high"),
        (text_with(priority=True), "text", "priority", "whole number"),
        (text_with(priority="urgent"), "text", "priority", "low, normal or high"),
        (text_with(batch_size=0), "text", "batch_size", "greater than or equal to 1"),
        (text_with(batch_size="8"), "text", "batch_size", "integer"),
        (text_with(metadata=[]), "text", "metadata", "object"),
        (text_with(metadata={"a": [1, float("nan")]}), "text", "metadata.a[1]", "finite"),
        (text_with(metadata={"a": {"b": 10**30}}), "text", "metadata.a.b", "64 bits"),
        (text_with(callback_url="ftp://example.com"), "text", "callback_url", "http"),
        (text_with(callback_url="http://"), "text", "callback_url", "host"),
        (text_with(model_name=" "), "text", "model_name", "blank"),
    ],
)
def test_what_is_wrong_is_said_by_field(message: Any, modality: str, field: str, said: str) -> None:
    with pytest.raises(InvalidMessageError) as error:
        decode(encoded(message), b"the-key", ORIGIN, Modality(modality))
    assert error.value.field == field
    assert said in str(error.value)
    assert str(error.value).startswith(field)
    valid_id = isinstance(message, dict) and message.get("task_id") == "t-1"
    assert error.value.task_id == ("t-1" if valid_id else "the-key")


@pytest.mark.parametrize(
    ("data", "field", "said"),
    [
        ({}, "data.content", "is missing"),
        ({"content": " "}, "data.content", "blank"),
        ({"content": "x", "colour": 1}, "data.colour", "is not a field of a document"),
        ({"content": "x", "content_type": "image/png"}, "data.content_type", "not supported; send images as"),
        ({"content": "x", "content_type": "video/mp4"}, "data.content_type", "not supported; give the type"),
        ({"content": "x!", "content_type": "application/pdf"}, "data.content", "base64"),
        ({"content": "x", "metadata": {"a": float("inf")}}, "data.metadata.a", "finite"),
    ],
)
def test_what_is_wrong_with_a_document(data: Any, field: str, said: str) -> None:
    with pytest.raises(InvalidMessageError, match=said) as error:
        decode(encoded({"task_type": "document_vectorization", "data": data}), None, ORIGIN, Modality.DOCUMENT)
    assert error.value.field == field


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_content_of_a_binary_format_is_base64(content_type: str) -> None:
    suffix, binary = CONTENT_TYPES[content_type]
    content = base64.b64encode(b"\x00\xff%PDF").decode() if binary else "the text"
    data = {"content": content, "content_type": f"{content_type.upper()}; charset=utf-8"}
    request = decode(encoded({"task_type": "document_vectorization", "data": data}), None, ORIGIN, Modality.DOCUMENT)
    assert isinstance(request, Request)
    document = request.items[0].content
    assert isinstance(document, InlineDocument)
    assert document.content == (b"\x00\xff%PDF" if binary else "the text")
    assert document.name == f"document{suffix}"


def inline(content: str | bytes, **fields: str) -> InlineDocument:
    data = {"content": base64.encodebytes(content).decode() if isinstance(content, bytes) else content, **fields}
    request = decode(encoded({"task_type": "document_vectorization", "data": data}), None, ORIGIN, Modality.DOCUMENT)
    assert isinstance(request, Request)
    document = request.items[0].content
    assert isinstance(document, InlineDocument)
    return document


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/json"])
@pytest.mark.parametrize(
    "content", [b"PK\x03\x04" + b"x" * 900, b"%PDF-1.7\n", b"\xff\xd8\xff\xe0", b"\0" * 257 + b"ustar", b"{\\rtf1 a}"]
)
def test_base64_of_a_binary_format_is_decoded_whatever_its_type(content: bytes, content_type: str | None) -> None:
    document = inline(content, title="a.bin", **({} if content_type is None else {"content_type": content_type}))
    assert (document.content, document.content_type, document.name) == (content, "application/octet-stream", "a.bin")


@pytest.mark.parametrize(
    "content",
    ["QUJD", "UEsDBA==", "JVBERi0 is how a PDF begins", "JVBERi0xLjc=é", "the boats\nlie in the harbour", "UEsDBAAA\0"],
)
def test_other_text_stays_the_text_that_it_is(content: str) -> None:
    assert inline(content).content == (content if content != "UEsDBA==" else b"PK\x03\x04")


def test_bytes_of_any_kind_are_base64_and_named_as_their_title_says() -> None:
    document = inline(b"a,b\n1,2\n", title="tides.csv", content_type="application/octet-stream")
    assert (document.content, document.name) == (b"a,b\n1,2\n", "tides.csv")
    with pytest.raises(InvalidMessageError, match="must be base64 for application/octet-stream"):
        inline("a,b", content_type="application/octet-stream")


def test_mail_is_text_or_base64() -> None:
    mail = b"From: a@example.com\nSubject: Tides\n\nHigh at noon."
    assert inline(mail, content_type="message/rfc822").content == mail
    assert inline(mail.decode(), content_type="message/rfc822").content == mail.decode()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"", "no valid JSON"),
        (b"\xff\xfe", "no valid JSON"),
        (b'{"task_type": "text_vectorization", "data": "\\ud800"}', "no valid JSON"),
        (b'{"metadata": ' + b"[" * 100_000, "recursion limit"),
        (b'{"metadata": ' + b"9" * 100_000 + b"}", "no valid JSON"),
        (encoded(text_with()) + b" {}", "no valid JSON"),
    ],
)
def test_what_is_no_json(value: bytes, said: str) -> None:
    with pytest.raises(InvalidMessageError, match=said) as error:
        decode(value, b"k", ORIGIN, Modality.TEXT)
    assert error.value.task_id == "k"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            b"\0\0\0\0\x07" + encoded(text_with()),
            r"five bytes of a schema registry \(schema 7\), and JSON follows: use",
        ),
        (b"\0\0\1\0\0\x02\x0ab", r"schema registry \(schema 65536\), and what is no JSON \(Avro or Protobuf\) follows"),
        (b"\x03\0" + bytes(range(16)) + encoded(text_with()), "AWS Glue's schema registry: use"),
        (gzip.compress(encoded(text_with())), r"compressed with gzip: produce .* `compression.type`"),
        (zlib.compress(encoded(text_with())), "compressed with zlib"),
        (pickle.dumps(text_with()), "pickled object of Python"),
        (json.dumps(text_with()).encode("utf-16"), "UTF-16: produce the JSON object itself, in UTF-8"),
        (json.dumps(text_with()).encode("utf-16-be"), "UTF-16"),
        (b"\x82\xa9task_type\xb2text_vectorization\xa4data\xa1a", "MessagePack"),
        (b"\xa2\x69task_type\x72text_vectorization\x64data\x61a", "CBOR"),
        (json.dumps(json.dumps(text_with())).encode(), "encoded twice"),
        (encoded({"schema": None, "payload": text_with()}), "value.converter.schemas.enable=false"),
    ],
)
def test_other_forms_are_named_with_the_remedy(value: bytes, said: str) -> None:
    with pytest.raises(InvalidMessageError, match=said) as error:
        decode(value, b"k", ORIGIN, Modality.TEXT)
    assert error.value.field == ""


def test_a_byte_order_mark_is_passed_over() -> None:
    request = decode(b"\xef\xbb\xbf" + encoded(text_with()), None, ORIGIN, Modality.TEXT)
    assert isinstance(request, Request)
    assert request.task_id == "t-1"
    with pytest.raises(InvalidMessageError) as error:
        decode(b"\xef\xbb\xbf" + encoded(text_with(priority=-1)), None, ORIGIN, Modality.TEXT)
    assert error.value.task_id == "t-1"


@given(
    st.binary(min_size=1, max_size=200), st.integers(1, 80), st.sampled_from(["\n", "\r\n", " ", "\t"]), st.booleans()
)
def test_base64_is_base64_in_lines_and_without_its_padding(content: bytes, width: int, end: str, padded: bool) -> None:
    text = base64.b64encode(content).decode()
    lines = end.join(text[place : place + width] for place in range(0, len(text), width)) + end
    data = {"content": lines if padded else lines.replace("=", ""), "content_type": "application/pdf"}
    message = {"task_type": "document_vectorization", "data": data}
    request = decode(encoded(message), None, ORIGIN, Modality.DOCUMENT)
    assert isinstance(request, Request)
    assert isinstance(request.items[0].content, InlineDocument)
    assert request.items[0].content.content == content


def test_a_nul_and_a_repeated_name_are_taken_as_they_are() -> None:
    request = decode(b'{"task_type":"text_vectorization","data":"a","data":"b\\u0000"}', None, ORIGIN, Modality.TEXT)
    assert isinstance(request, Request)
    assert request.items[0].content == "b\0"


def test_a_null_value_deletes_what_its_key_names() -> None:
    assert decode(None, "à".encode(), ORIGIN, Modality.TEXT) == Tombstone("à", ORIGIN)
    refused: list[tuple[bytes | None, str]] = [
        (None, "missing"),
        (b"", "missing"),
        (b"\xff", "UTF-8"),
        (b"a\0", "print"),
    ]
    for key, said in refused:
        with pytest.raises(InvalidMessageError, match=said) as error:
            decode(None, key, ORIGIN, Modality.TEXT)
        assert error.value.field == "key"


def test_versions_are_ordered_by_time_then_place() -> None:
    make: Callable[..., Origin] = Origin
    ordered = [make("b", 9, 9, 1), make("a", 0, 5, 2), make("a", 1, 4, 2), make("b", 0, 0, 2)]
    assert sorted(ordered, key=lambda origin: origin.version) == ordered
