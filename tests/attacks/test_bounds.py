"""A few bytes that grow: requests, messages, documents and files that would take memory or time without end."""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.documents.builders import docx, pdf, settings
from tests.pipeline.requests.installation import (
    MakeInstallation,
    batch_request,
    check_finished,
    install,
    text_request,
)
from vectorize_pipelines.core import records
from vectorize_pipelines.core.items import Item, MetadataLimits, Modality, encode_metadata
from vectorize_pipelines.documents.cutting import Cutting
from vectorize_pipelines.documents.errors import (
    DecompressionLimitError,
    ParseTimeoutError,
    TooManyChunksError,
    TooManyRowsError,
    TooMuchMetadataError,
)
from vectorize_pipelines.documents.parsed_ahead import ParsedAhead
from vectorize_pipelines.documents.parsing import parse
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.messaging.messages import InvalidMessageError, Origin, Request, decode
from vectorize_pipelines.settings import KafkaSettings, load_settings

ORIGIN = Origin("topic", 0, 0, 1_700_000_000_000)


@pytest.fixture
def make(tmp_path: Path, kafka_settings: KafkaSettings) -> MakeInstallation:
    servers = kafka_settings.bootstrap_servers
    assert servers is not None
    return lambda **overrides: install(tmp_path / "home", servers, kafka_settings.topic_prefix, **overrides)


def decoded(request: dict[str, Any], modality: Modality = Modality.TEXT, **limits: int) -> Request:
    bounds = MetadataLimits(**{"max_bytes": 64 * 1024, "max_values": 1000, **limits})
    found = decode(json.dumps(request).encode(), None, ORIGIN, modality, bounds)
    assert isinstance(found, Request)
    return found


def document_request(metadata: Any) -> dict[str, Any]:
    return {"task_type": "document_vectorization", "data": {"content": "a text", "metadata": metadata}}


def nested(levels: int) -> Any:
    found: Any = 1
    for _ in range(levels):
        found = {"a": found}
    return found


# What one request may say


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({f"k{n}": n for n in range(1001)}, "more than 1,000 values"),
        ({f"k{n}": n for n in range(250_000)}, "more than 1,000 values"),
        ({"list": list(range(1000))}, "more than 1,000 values"),
        ({"list": [[[]] * 600] * 2}, "more than 1,000 values"),
        ({"text": "x" * 66_000}, r"has 66,\d+ bytes; 65,536 are allowed"),
        ({"text": "\U0001f44d" * 17_000}, "65,536 are allowed"),
        ({"x" * 66_000: 1}, "65,536 are allowed"),
        ({f"k{n}": "x" * 100 for n in range(700)}, "65,536 are allowed"),
        (nested(33), "more than 32 levels"),
        (nested(150), "more than 32 levels"),
        ({"n": float("inf")}, "finite"),
        ({"n": [10**30]}, "64 bits"),
    ],
)
def test_metadata_beyond_their_bounds_are_refused_by_name(metadata: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidMessageError, match=reason) as refused:
        decoded(text_request("a", "a boat", metadata=metadata))
    assert refused.value.field.startswith("metadata")
    assert refused.value.task_id == "a"
    with pytest.raises(InvalidMessageError, match=reason) as refused:
        decoded(document_request(metadata), Modality.DOCUMENT)
    assert refused.value.field.startswith("data.metadata")


@pytest.mark.parametrize(
    "metadata",
    [
        {f"k{n}": n for n in range(1000)},
        {"text": "x" * (64 * 1024 - len('{"text": ""}'))},
        nested(32),
        {"a": [], "b": {}, "c": None, "d": "\U0001f44d"},
        {"numbers": [1e5] * 900},
    ],
)
def test_metadata_up_to_their_bounds_are_kept(metadata: dict[str, Any]) -> None:
    assert decoded(text_request("a", "a boat", metadata=metadata)).metadata == metadata


def test_short_numbers_are_measured_as_they_are_stored() -> None:
    """`1e15` has four bytes in a message, and eighteen as it is written out."""
    value = b'{"task_type": "text_vectorization", "data": "x", "metadata": {"n": [%s]}}' % b",".join([b"1e15"] * 900)
    assert len(value) < 5000
    with pytest.raises(InvalidMessageError, match="10,000 are allowed"):
        decode(value, None, ORIGIN, Modality.TEXT, MetadataLimits(10_000, 1000))


@pytest.mark.parametrize(
    "value",
    [
        b'{"task_type":"text_vectorization","data":"x","version":%s}' % (b"9" * 20_000),
        b'{"task_type":"text_vectorization","data":"x","batch_size":%s}' % (b"9" * 20_000),
        b'{"task_type":"text_vectorization","data":"x","priority":%s}' % (b"9" * 20_000),
        b'{"task_type":"text_vectorization","data":"x","metadata":{"n":%s}}' % (b"9" * 20_000),
        b'{"task_type":"text_vectorization","data":"x","metadata":{"n":-1e400}}',
        b'{"task_type":"text_vectorization","data":%s}' % (b"[" * 100_000),
        b'{"task_type":"text_vectorization","data":%s}' % (b'{"a":' * 100_000),
        b'{"task_type":"%s","data":"x"}' % (b"t" * 1_000_000),
        b'{"task_type":"text_vectorization","data":"x","task_id":"%s"}' % (b"t" * 1_000_000),
        b'{"task_type":"text_vectorization","data":"x","collection":"%s"}' % (b"t" * 1_000_000),
        b'{"task_type":"text_vectorization","data":"x","model_name":"%s"}' % (b"t" * 1_000_000),
        b'{"task_type":"text_vectorization","data":"x","callback_url":"https://a/%s"}' % (b"t" * 1_000_000),
        b'{"task_type":"text_vectorization","data":"x","%s":1}' % (b"t" * 1_000_000),
        b'{"task_type":"batch_vectorization","data":[%s]}' % b",".join([b'"x"'] * 10_001),
        b'{"task_type":"batch_vectorization","data":[{"task_type":"%s","data":1}]}' % (b"t" * 1_000_000),
    ],
    ids=range(15),
)
def test_fields_of_a_size_that_nobody_means_are_refused_in_a_few_words(value: bytes) -> None:
    with pytest.raises(InvalidMessageError) as refused:
        decode(value, b"k" * 1_000_000, ORIGIN, Modality.TEXT)
    assert len(str(refused.value)) < 2000
    assert len(refused.value.task_id or "") <= 512


def test_of_a_key_that_is_there_twice_the_last_counts() -> None:
    value = b'{"task_type":"text_vectorization","data":"x","metadata":{%s}}' % b",".join([b'"a":1'] * 5000 + [b'"a":2'])
    request = decode(value, None, ORIGIN, Modality.TEXT)
    assert isinstance(request, Request)
    assert request.metadata == {"a": 2}


@pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.DOCUMENT])
def test_an_address_has_a_length(modality: Modality) -> None:
    kind = f"{modality.value}_vectorization"
    long = "https://example.org/" + "a" * 9000
    with pytest.raises(InvalidMessageError, match=r"data: must be a URI of at most 8,192 characters, not 9,020"):
        decoded({"task_type": kind, "data": long}, modality)
    assert decoded({"task_type": kind, "data": "data:," + "a" * 9000}, modality).items


def test_the_metadata_of_a_request_are_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def counting(metadata: Any) -> str:
        calls.append(metadata)
        return encode_metadata(metadata)

    monkeypatch.setattr(records, "encode_metadata", counting)
    shared = {f"k{n}": n for n in range(1000)}
    now = datetime.now(UTC)
    items = [Item("a", n, Modality.TEXT, "x", None, "h", now, metadata=shared) for n in range(500)]
    items.append(Item("b", 0, Modality.TEXT, "x", None, "h", now, metadata={"other": 1}))
    n = len(items)
    vectors = np.zeros((n, 4), dtype=np.float32)
    names = [f"id-{n}" for n in range(n)]
    table = records.make_records(names, items, ["2024-01-01"] * n, vectors, [now] * n, ["m"] * n, run_id="r")
    assert len(calls) == 2
    texts = table["metadata"].to_pylist()
    assert json.loads(texts[499]) == shared
    assert texts[500] == '{"other": 1}'


# What a run over messages holds


def test_a_request_with_too_much_metadata_goes_to_the_dead_letters_alone(make: MakeInstallation) -> None:
    """Ten thousand short texts and a quarter of a million keys: four megabytes, which once grew to gigabytes."""
    installation = make()
    bomb = batch_request("bomb", [f"text {n}" for n in range(10_000)], metadata={f"k{n}": n for n in range(250_000)})
    assert len(json.dumps(bomb)) > 4_000_000
    installation.send(text_request("before", "a boat"), bomb, text_request("after", "the sea"))
    installation.drain()
    assert installation.final_events() == {"before": ["completed"], "bomb": ["failed"], "after": ["completed"]}
    assert "metadata" in (installation.ledger()["bomb"].error_message or "")
    assert len(installation.letters()) == 1
    check_finished(installation, stored=2)


def test_a_request_whose_rows_grow_too_large_is_refused_with_the_remedy(make: MakeInstallation) -> None:
    installation = make()
    metadata = {"note": "x" * 60_000}
    installation.send(
        text_request("before", "a boat"),
        batch_request("bomb", [f"text {n}" for n in range(10_000)], metadata=metadata),
        batch_request("good", ["text 1", "text 2"], metadata=metadata),
    )
    installation.drain()
    assert installation.final_events() == {"before": ["completed"], "bomb": ["failed"], "good": ["completed"]}
    row = installation.ledger()["bomb"]
    assert row.error_class == "RequestGrowthError"
    assert "10,000 rows" in (row.error_message or "")
    assert "VECTORIZE_KAFKA__DRAIN__BATCH_BYTES" in (row.error_message or "")
    check_finished(installation, stored=3)


def test_messages_are_taken_together_only_as_far_as_they_fit(make: MakeInstallation) -> None:
    installation = make(kafka={"drain": {"batch_bytes": 2_000_000}})
    together: list[int] = []
    installation.on_encode = lambda items: together.append(len(items))
    requests = [batch_request(f"batch-{n}", [f"text {n} {m}" for m in range(40)]) for n in range(40)]
    installation.send(*requests, partition=0)
    installation.drain()
    assert max(together) <= 2_000_000 // (8 * 1024)
    assert set(installation.final_events()) == {request["task_id"] for request in requests}
    check_finished(installation, stored=1600)


def test_a_value_that_is_large_once_it_is_unpacked_is_not_looked_into(make: MakeInstallation) -> None:
    """Kafka bounds what is sent, which is compressed."""
    installation = make(kafka={"drain": {"batch_bytes": 8_000_000}})
    bomb = json.dumps(text_request("bomb", "x" * 1_000_000)).encode()
    installation.send(bomb, key=b"bomb")
    installation.send(text_request("after", "the sea"))
    stream = installation.drain()
    assert stream.figures()["dead_letters"] == 1
    assert installation.final_events()["after"] == ["completed"]
    (letter,) = installation.letters()
    message = dict(letter.headers())["__connect.errors.exception.message"].decode()
    assert "1,000,0" in message
    assert "VECTORIZE_KAFKA__DRAIN__BATCH_BYTES" in message
    check_finished(installation, stored=1)


def test_a_flood_of_headers_stops_nobody(make: MakeInstallation) -> None:
    installation = make()
    installation.send(b"no request", headers=[(f"h{n}", b"x" * 100) for n in range(20_000)])
    installation.send(text_request("after", "the sea"))
    installation.drain()
    assert len(installation.letters()) == 1
    assert installation.final_events()["after"] == ["completed"]
    check_finished(installation, stored=1)


def test_rows_that_are_there_already_are_compared_without_reading_their_metadata_each(make: MakeInstallation) -> None:
    installation = make()
    texts = [f"text {n}" for n in range(200)]
    metadata = {f"k{n}": n for n in range(1000)}
    installation.send(batch_request("same", texts, metadata=metadata))
    installation.drain()
    installation.send(batch_request("same", [*texts[:-1], "another"], metadata=metadata))
    stream = installation.drain()
    assert stream.totals.sum().encoded == 1
    check_finished(installation, stored=200)


_LIMITED = """
import json, pathlib, resource, sys
from tests.attacks.embedding_alone import embed_alone
limit = 3 * 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for number, line in enumerate(sys.stdin):
    print(embed_alone(str(pathlib.Path(sys.argv[1], str(number))), json.loads(line)))
"""
#: What requests hold, and what becomes of each.
REQUESTS: list[tuple[int, dict[str, Any], str]] = [
    (10_000, {f"k{n}": n for n in range(250_000)}, "refused: metadata"),
    (10_000, {"note": "x" * 65_000}, "RequestGrowthError"),
    (10_000, {"note": "x" * 8_000}, "done"),  # as much as fits
    (2_000, {f"k{n}": "x" * 50 for n in range(990)}, "done"),  # as many as fit
]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit of address space")
def test_what_a_request_may_hold_fits_into_a_bound_of_memory(tmp_path: Path) -> None:
    """In a process whose address space ends where a request of four megabytes once went on."""
    requests = [batch_request("r", [f"text {n}" for n in range(rows)], metadata=held) for rows, held, _ in REQUESTS]
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path)],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for (_, _, outcome), line in zip(REQUESTS, done.stdout.splitlines(), strict=True):
        assert line.startswith(outcome)


# What a document may hold


def parquet(table: pa.Table) -> bytes:
    buffer = BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


TABLES = {
    "a.csv": b"text,n\n" + b"a,1\n" * 11,
    "a.tsv": b"text\tn\n" + b"a\t1\n" * 11,
    "a.jsonl": b'{"text": "a"}\n\n' * 11,
    "a.parquet": parquet(pa.table({"text": pa.array(["a"] * 11).dictionary_encode()})),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_a_most_of_rows(name: str) -> None:
    with pytest.raises(TooManyRowsError, match=r"more than 10 rows.*VECTORIZE_DOCUMENTS__MAX_ROWS"):
        parse(TABLES[name], name, settings(max_rows=10))
    assert len(parse(TABLES[name], name, settings(max_rows=11)).rows) == 11


def test_millions_of_rows_in_a_few_bytes_are_refused_unread() -> None:
    content = parquet(pa.table({"text": pa.array(["a"] * 3_000_000).dictionary_encode()}))
    assert len(content) < 20_000
    with pytest.raises(TooManyRowsError):
        parse(content, "a.parquet", settings())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "a"}\n' + json.dumps({"text": "b", "html": "x" * 70_000}).encode()),
        ("a.jsonl", b'{"text": "a"}\n' + json.dumps({"text": "b", **{f"k{n}": 1 for n in range(1001)}}).encode()),
        ("a.csv", b"text,html\na,b\nc," + b"x" * 70_000),
        ("a.parquet", parquet(pa.table({"text": ["a", "b"], "list": [[], [1] * 1001]}))),
    ],
    ids=range(4),
)
def test_a_row_with_too_much_metadata_is_named(name: str, content: bytes) -> None:
    with pytest.raises(TooMuchMetadataError, match=r"the metadata of row 1 .*VECTORIZE_DOCUMENTS__METADATA_COLUMNS"):
        parse(content, name, settings())
    assert len(parse(content, name, settings(metadata_columns=())).rows) == 2


def test_long_names_of_columns_do_not_add_up() -> None:
    """A name stands once in the file, and in each of its rows."""
    columns = {"x" * 1000 + str(n): pa.array([1] * 2_000) for n in range(50)}
    content = parquet(pa.table({"text": ["a"] * 2_000, **columns}))
    with pytest.raises(DecompressionLimitError):
        parse(content, "a.parquet", settings(max_decompressed_bytes=40 * 2**20))


def test_rows_with_fields_of_their_own_cost_what_they_hold() -> None:
    """Each of many rows with another field: a table with a column for each would have their square."""
    lines = [json.dumps({"text": f"t{n}", f"field-{n}": n}) for n in range(20_000)]
    document = parse("\n".join(lines).encode(), "a.jsonl", settings())
    assert document.rows[19_999].metadata == {"field-19999": 19_999}


def test_rows_without_a_text_are_left_out_and_those_without_a_field_have_none() -> None:
    content = b'{"text": "a", "x": 1}\n{"x": 2}\n{"text": "c"}'
    assert [(row.number, row.metadata) for row in parse(content, "a.jsonl", settings()).rows] == [
        (0, {"x": 1}),
        (2, {}),
    ]


@pytest.mark.parametrize("many", ["".join(f"k{n}: {n}\n" for n in range(5000)), f"list: [{'1, ' * 2000}1]\n"])
def test_front_matter_with_too_many_values_is_refused(many: str) -> None:
    with pytest.raises(TooMuchMetadataError, match="more than 1,000 values"):
        parse(f"---\n{many}---\n# A boat\n".encode(), "a.md", settings())


@pytest.mark.parametrize("field", ["date", "title", "n", "? "])
def test_numbers_of_thousands_of_digits_are_no_failure_of_the_parser(field: str) -> None:
    """YAML has them in hexadecimal, which Python reads whatever their length and does not write: they stay texts."""
    name = f"{field}: 0x{'f' * 20_000}" if field != "? " else f"? 0x{'f' * 20_000}\n: 1"
    content = f"---\n{name}\n---\n# A boat\n\nIt sails.\n".encode()
    assert "A boat" in parse(content, "a.md", settings()).text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.md", b"# " + b"word " * 200_000 + b"\n\nText.\n"),
        ("a.html", b"<html><head><title>" + b"word " * 200_000 + b"</title></head><body><p>Text.</p>"),
        ("a.html", b"<h1>" + b"word " * 200_000 + b"</h1><p>Text.</p>"),
        ("a.pdf", pdf(["Text."], title="word " * 100_000)),
        ("a.docx", docx(("Heading 1", "word " * 100_000), "Text.")),
    ],
    ids=["heading", "title", "html heading", "pdf", "docx"],
)
def test_what_names_a_document_or_a_section_is_cut_to_a_name(name: str, content: bytes) -> None:
    """It stands in the metadata of every passage."""
    document = parse(content, name, settings())
    assert len(str(document.metadata["title"])) <= 500
    assert all(len(title) <= 500 for section in document.sections for title in section.path)
    assert "Text." in document.text


def test_a_heading_of_blanks_takes_no_time() -> None:
    document = parse(b"# a" + b" " * 500_000 + b"b\n\nText.\n", "a.md", settings())
    assert "Text." in document.text


def test_a_long_description_is_refused() -> None:
    content = b"<head><meta name=description content='" + b"x" * 70_000 + b"'></head><p>Text.</p>"
    with pytest.raises(TooMuchMetadataError, match="VECTORIZE_DOCUMENTS__MAX_METADATA_BYTES"):
        parse(content, "a.html", settings())


def test_a_document_of_more_sections_than_passages_is_refused_in_its_parser() -> None:
    content = b"".join(b"# h%d\n\nt\n\n" % n for n in range(12))
    with pytest.raises(TooManyChunksError, match="VECTORIZE_DOCUMENTS__MAX_CHUNKS"):
        parse(content, "a.md", settings(max_chunks=10))


def cutting(**documents: Any) -> Cutting:
    given = load_settings({}, documents={"chunk_tokens": 32, "overlap_tokens": 0, **documents})
    return Cutting(given, given.models.text)


def cut(document: ParsedDocument, **limits: Any) -> list[Item]:
    now = datetime.now(UTC)
    return cutting(**limits).items(document, source_id="a", uri="a", occurred_at=now)


def test_a_document_has_a_most_of_passages() -> None:
    document = ParsedDocument("A boat lies in the harbour at night. " * 200, {})
    passages = len(cut(document))
    assert len(cut(document, max_chunks=passages)) == passages
    with pytest.raises(TooManyChunksError, match=f"more than {passages - 1} passages"):
        cut(document, max_chunks=passages - 1)


def test_what_stands_in_every_passage_does_not_add_up() -> None:
    document = ParsedDocument("A boat lies in the harbour at night. " * 2000, {"note": "x" * 60_000})
    with pytest.raises(TooMuchMetadataError, match="each of its passages"):
        cut(document, max_decompressed_bytes=10_000_000)


def test_passages_of_a_section_share_their_metadata() -> None:
    items = cut(ParsedDocument("A boat lies in the harbour at night. " * 50, {"note": "x"}))
    assert len(items) > 2
    assert len({id(item.metadata) for item in items}) == 1


def test_cutting_ends_when_the_run_does() -> None:
    from concurrent.futures import CancelledError

    document = ParsedDocument("A boat lies in the harbour at night. " * 2000, {})
    interrupted = cutting()
    interrupted.interrupt()
    with pytest.raises(CancelledError):
        interrupted.items(document, source_id="a", uri="a", occurred_at=datetime.now(UTC))


def test_cutting_that_goes_on_for_ever_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from vectorize_pipelines.documents.chunking import Chunker
    from vectorize_pipelines.documents.types import Chunk

    def endless(self: Chunker, document: ParsedDocument) -> Iterator[Chunk]:
        while True:
            yield Chunk(0, "a", 0, 1, None, 1, {})

    monkeypatch.setattr(Chunker, "chunks", endless)
    with pytest.raises(ParseTimeoutError, match="to cut into passages"):
        cut(ParsedDocument("a", {}), timeout_seconds=0.05, max_chunks=10**9)


def test_documents_are_parsed_ahead_only_as_far_as_they_fit() -> None:
    ahead, large = ParsedAhead(most=1000), ParsedDocument("x" * 2000, {})
    begun: list[int] = []
    changed = threading.Condition()

    def parse_one(number: int) -> None:
        ahead.wait(number)
        with changed:
            begun.append(number)
            changed.notify_all()

    ahead.hold(large)
    threads = [threading.Thread(target=parse_one, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    with changed:
        assert not changed.wait_for(lambda: bool(begun), timeout=0.2)
    ahead.await_(1)  # the next one is parsed whatever waits
    with changed:
        assert changed.wait_for(lambda: begun == [1], timeout=30)
    ahead.release(large)
    for thread in threads:
        thread.join(30)
    assert sorted(begun) == [1, 2, 3]


def test_a_document_in_a_request_whose_passages_grow_too_large_is_refused(make: MakeInstallation) -> None:
    installation = make(
        kafka={"drain": {"batch_bytes": 3_000_000}}, documents={"chunk_tokens": 32, "overlap_tokens": 0}
    )
    installation.modality = Modality.DOCUMENT
    text = "A boat lies in the harbour at night. " * 500

    def request(task_id: str, content: str, note: str) -> dict[str, Any]:
        data = {"content": content, "metadata": {"note": note}}
        return {"task_id": task_id, "task_type": "document_vectorization", "data": data}

    installation.send(request("bomb", text, "x" * 20_000), request("good", text, "x"))
    installation.drain()
    assert installation.final_events() == {"bomb": ["failed"], "good": ["completed"]}
    assert installation.ledger()["bomb"].error_class == "RequestGrowthError"
    assert not installation.outstanding()


def test_gzip_of_nothing_is_not_what_it_says() -> None:
    with pytest.raises(ItemError):
        parse(gzip.compress(b"0" * 10_000_000), "a.txt", settings())
