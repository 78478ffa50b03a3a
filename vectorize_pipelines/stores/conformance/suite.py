"""The suite that every vector store passes.

A store's own test module subclasses the classes here and gives them the fixture `open_again`: a function that
opens the store under test, always on the same, initially empty place.

    class TestCollections(conformance.Collections):
        @pytest.fixture
        def open_again(self, tmp_path): return lambda: MyStore.open(StoreSettings(kind="mine"), tmp_path)
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vectorize_pipelines.core.records import RECORD_FIELDS, record_schema
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.errors import CollectionNotFoundError, ModelMismatchError, StoreError
from vectorize_pipelines.stores.base import VectorStore, Written, physical_name
from vectorize_pipelines.stores.conformance.records import COLLECTION, NOON, Row, many, row, spec, stored, table
from vectorize_pipelines.stores.conformance.reference import matches
from vectorize_pipelines.stores.filters.expressions import And, Equal, Exists, Filter, In, Not, Or, Prefix, Range

EVERYTHING = And(())
NASTY_TEXTS = (
    "", "plain", "plainer", "2024", "true", "null", "it's", '"quoted"', "back\\slash", "100%", "under_score",
    "-12.50", "0012", "1e3", "naïve 日本語 😀", "e\u0301", "line\nbreak\ttab", "\x00\x01\x1e\x1f",
    "'; DROP TABLE articles; --", "$.a['b']",
)  # fmt: skip


def _without_source() -> pa.Table:
    loose = pa.schema([field.with_nullable(True) for field in record_schema(4)])
    return pa.Table.from_pylist([row() | {"source_id": None}], schema=loose)


class _OnOneStore:
    """The common ground of the classes below: a store with an empty collection named `articles`."""

    @pytest.fixture
    def open_again(self) -> Callable[[], VectorStore]:
        raise NotImplementedError("a store's test module says how the store is opened")

    @pytest.fixture
    def store(self, open_again: Callable[[], VectorStore]) -> Iterator[VectorStore]:
        store = open_again()
        store.ensure_collection(COLLECTION, spec())
        yield store
        store.close()


class Collections(_OnOneStore):
    """Collections, their models and their aliases."""

    def test_a_collection_is_described_by_its_alias_and_by_its_physical_name(self, store: VectorStore) -> None:
        by_alias = store.collection(COLLECTION)
        assert by_alias.name == COLLECTION
        assert by_alias.physical == physical_name(COLLECTION, spec()) == "articles__tiny-model-4"
        assert (by_alias.model, by_alias.dimension, by_alias.store) == (spec().name, 4, store.kind)
        assert store.collection(by_alias.physical).physical == by_alias.physical

    def test_ensuring_a_collection_twice_changes_nothing(self, store: VectorStore) -> None:
        store.upsert(COLLECTION, many(3))
        assert store.ensure_collection(COLLECTION, spec()) == store.collection(COLLECTION)
        assert store.count(COLLECTION) == 3

    @pytest.mark.parametrize("other", [spec(name="models/other"), spec(dimension=8)], ids=["model", "dimension"])
    def test_another_model_is_refused_and_named(self, store: VectorStore, other: EncoderSpec) -> None:
        other = spec(other.name, other.dimension, revision="ffffffffffff")
        with pytest.raises(ModelMismatchError, match=r"tiny-model.*other|4 dimensions.*with 8"):
            store.ensure_collection(COLLECTION, other)

    def test_a_collection_for_another_model_can_stand_beside_the_alias(self, store: VectorStore) -> None:
        other = spec("models/other", 8)
        beside = store.ensure_collection(COLLECTION, other, aliased=False)
        assert beside.name == beside.physical == physical_name(COLLECTION, other)
        assert store.collection(COLLECTION).physical == physical_name(COLLECTION, spec())
        assert [collection.name for collection in store.collections()] == [COLLECTION, beside.physical]

    def test_an_edition_of_the_same_model_can_stand_beside_the_alias(self, store: VectorStore) -> None:
        first = store.collection(COLLECTION)
        second = store.ensure_collection(COLLECTION, spec(), aliased=False, edition=2)
        assert second.name == second.physical == physical_name(COLLECTION, spec(), 2) != first.physical
        store.upsert(second.physical, table([row()]))
        assert (store.count(COLLECTION), store.count(second.physical)) == (0, 1)
        store.set_alias(COLLECTION, second.physical)
        assert store.ensure_collection(COLLECTION, spec()).physical == second.physical

    def test_switching_an_alias_switches_every_reader(
        self, store: VectorStore, open_again: Callable[[], VectorStore]
    ) -> None:
        reader = open_again()
        store.upsert(COLLECTION, many(3))
        other = store.ensure_collection(COLLECTION, spec("models/other"), aliased=False)
        assert reader.count(COLLECTION) == 3
        store.set_alias(COLLECTION, other.physical)
        assert reader.count(COLLECTION) == 0
        assert reader.collection(COLLECTION).model == "models/other"
        assert reader.ensure_collection(COLLECTION, spec("models/other")).physical == other.physical

    def test_a_search_follows_the_alias_at_once(
        self, store: VectorStore, open_again: Callable[[], VectorStore]
    ) -> None:
        of_four = store.ensure_collection(COLLECTION, spec("models/other"), aliased=False).physical
        of_eight = store.ensure_collection(COLLECTION, spec("models/wider", dimension=8), aliased=False).physical
        first, second, third = many(3), many(3, first=3), many(2, dimension=8, first=6)
        for name, records in ((COLLECTION, first), (of_four, second), (of_eight, third)):
            store.upsert(name, records)
        four, eight = np.ones(4, np.float32), np.ones(8, np.float32)

        def found(query: npt.NDArray[np.float32]) -> set[str]:
            return set(reader.search(COLLECTION, query, 5)["id"].to_pylist())

        with closing(open_again()) as reader:
            assert found(four) == set(first["id"].to_pylist())
            store.set_alias(COLLECTION, of_four)
            assert found(four) == set(second["id"].to_pylist())
            store.set_alias(COLLECTION, of_eight)
            assert found(eight) == set(third["id"].to_pylist())
            with pytest.raises(StoreError):
                found(four)
            store.drop(of_eight)
            with pytest.raises(CollectionNotFoundError):
                found(eight)

    def test_dropping_a_collection_drops_its_aliases(self, store: VectorStore) -> None:
        physical = store.collection(COLLECTION).physical
        store.set_alias("second-name", physical)
        store.drop(physical)
        assert store.collections() == []
        for name in (COLLECTION, "second-name", physical):
            with pytest.raises(CollectionNotFoundError):
                store.count(name)
        store.ensure_collection(COLLECTION, spec())
        assert store.count(COLLECTION) == 0

    def test_an_alias_is_no_collection_that_can_be_dropped_or_pointed_at(self, store: VectorStore) -> None:
        store.upsert(COLLECTION, many(2))
        with pytest.raises(CollectionNotFoundError, match=COLLECTION):
            store.drop(COLLECTION)
        with pytest.raises(CollectionNotFoundError, match=COLLECTION):
            store.set_alias("other", COLLECTION)
        assert store.count(COLLECTION) == 2

    def test_an_alias_cannot_point_at_nothing(self, store: VectorStore) -> None:
        with pytest.raises(CollectionNotFoundError, match="missing"):
            store.set_alias("other", "missing")

    @pytest.mark.parametrize(
        "call",
        [
            lambda store: store.collection("missing"),
            lambda store: store.drop("missing"),
            lambda store: store.upsert("missing", many(1)),
            lambda store: store.delete("missing", EVERYTHING),
            lambda store: store.fetch("missing", EVERYTHING, ["id"]),
            lambda store: list(store.scan("missing", ["id"])),
            lambda store: store.count("missing"),
            lambda store: store.count_by("missing", "source_id"),
            lambda store: store.search("missing", np.ones(4, np.float32), 1),
            lambda store: store.maintain("missing"),
        ],
    )
    def test_a_missing_collection_is_named_with_those_there_are(
        self, store: VectorStore, call: Callable[[VectorStore], object]
    ) -> None:
        with pytest.raises(CollectionNotFoundError, match=r"'missing'.*articles"):
            call(store)

    def test_what_is_written_is_there_for_whoever_opens_the_store_next(
        self, store: VectorStore, open_again: Callable[[], VectorStore]
    ) -> None:
        store.upsert(COLLECTION, many(3))
        assert open_again().count(COLLECTION) == 3


class Rows(_OnOneStore):
    """Writing, reading and deleting records."""

    JSON_VALUES: ClassVar[dict[str, Any]] = {
        "null": None, "true": True, "false": False, "zero": 0, "negative": -7, "beyond 64 bits": 2**64 + 1,
        "beyond doubles": 123456789012345678901234567890, "float": 0.1, "tiny": 5e-324, "text": "2024",
        "list": [1, "two", [None, {"deep": [True]}]], "object": {"a": {"b": {"c": "😀"}}}, "empty": {},
        "": "no name", "a.b": "dotted", "it's": "quoted", "\x1f": "\x1e",
    }  # fmt: skip

    def test_upsert_counts_what_is_new_and_what_was_there(self, store: VectorStore) -> None:
        assert store.upsert(COLLECTION, many(5)) == Written(inserted=5, updated=0)
        assert store.upsert(COLLECTION, many(8)) == Written(inserted=3, updated=5)
        assert store.count(COLLECTION) == 8

    def test_upsert_replaces_every_field_of_a_row(self, store: VectorStore) -> None:
        before = row(text="old", page=3, metadata={"a": 1, "b": 2})
        after = row(text=None, page=None, metadata={"b": 3}, run_id="later", vector=[0.0, 1.0, 0.0, 0.0])
        store.upsert(COLLECTION, table([before]))
        store.upsert(COLLECTION, table([after]))
        assert stored(store) == {after["id"]: after}
        assert store.count(COLLECTION, Exists("metadata.a")) == 0

    def test_repair_changes_no_row(self, store: VectorStore) -> None:
        store.upsert(COLLECTION, many(5))
        before = stored(store)
        there = store.repair(COLLECTION, [*before, row("nobody.txt")["id"]])
        assert there == (len(before) if store.needs_repair else 0)
        assert stored(store) == before

    def test_an_empty_upsert_writes_nothing(self, store: VectorStore) -> None:
        assert store.upsert(COLLECTION, table([])) == Written(inserted=0, updated=0)

    def test_repeated_ids_are_refused_and_nothing_is_written(self, store: VectorStore) -> None:
        repeated = row("twice.txt")
        with pytest.raises(StoreError, match=repeated["id"]):
            store.upsert(COLLECTION, table([row("once.txt"), repeated, repeated]))
        assert store.count(COLLECTION) == 0

    @pytest.mark.parametrize(
        ("records", "complaint"),
        [
            (many(1, dimension=8), "4 components"),
            (many(1).drop_columns("partition"), "columns"),
            (table([row(metadata="[1]")]), "JSON object"),
            (table([row(metadata='{"a": NaN}')]), "JSON"),
            (table([row(metadata="{")]), "JSON"),
            (table([row(vector=[0.0, float("nan"), 0.0, 0.0])]), "not finite"),
            (table([row(vector=[0.0, float("inf"), 0.0, 0.0])]), "not finite"),
            (_without_source(), "'source_id'"),
        ],
    )  # fmt: skip
    def test_records_that_are_none_are_refused(self, store: VectorStore, records: pa.Table, complaint: str) -> None:
        with pytest.raises(StoreError, match=complaint):
            store.upsert(COLLECTION, records)
        assert store.count(COLLECTION) == 0

    def test_a_slice_of_a_table_and_a_table_in_pieces_are_written_as_they_read(self, store: VectorStore) -> None:
        whole = many(20)
        store.upsert(COLLECTION, pa.concat_tables([whole.slice(3, 4), whole.slice(11, 5)]))
        expected = whole.slice(3, 4).to_pylist() + whole.slice(11, 5).to_pylist()
        assert stored(store) == {one["id"]: one for one in expected}

    @pytest.mark.parametrize("text", NASTY_TEXTS)
    def test_any_text_is_kept_in_every_text_field(self, store: VectorStore, text: str) -> None:
        fields = ("source_id", "modality", "text", "uri", "content_hash", "model", "partition", "run_id")
        written = row("nasty.txt", metadata={text: text}) | dict.fromkeys(fields, text)
        store.upsert(COLLECTION, table([written, row("plain.txt")]))
        for field in (*fields, f"metadata.{text}"):
            found = store.fetch(COLLECTION, And((Equal(field, text), Equal("id", written["id"]))), RECORD_FIELDS)
            assert found.to_pylist() == [{name: written[name] for name in RECORD_FIELDS}], field
        assert store.count_by(COLLECTION, "source_id") == {text: 1, "plain.txt": 1}

    def test_metadata_comes_back_equal_in_value(self, store: VectorStore) -> None:
        store.upsert(COLLECTION, table([row(metadata=self.JSON_VALUES)]))
        found = store.fetch(COLLECTION, EVERYTHING, ["metadata"])["metadata"].to_pylist()
        assert [json.loads(text) for text in found] == [self.JSON_VALUES]

    def test_null_fields_stay_null(self, store: VectorStore) -> None:
        written = row(text=None, uri=None, page=None, start=None, end=None)
        store.upsert(COLLECTION, table([written]))
        assert stored(store) == {written["id"]: written}

    def test_timestamps_keep_their_microseconds_and_are_utc(self, store: VectorStore) -> None:
        times = [datetime(1969, 12, 31, 23, 59, 59, 999999, UTC), NOON, datetime(2999, 1, 1, 0, 0, 0, 1, UTC)]
        rows = [row(item_index=index, occurred_at=time) for index, time in enumerate(times)]
        store.upsert(COLLECTION, table(rows))
        kept = store.fetch(COLLECTION, EVERYTHING, ["item_index", "occurred_at"]).sort_by("item_index")
        assert kept["occurred_at"].to_pylist() == times
        assert kept.schema.field("occurred_at").type == pa.timestamp("us", tz="UTC")
        for index, time in enumerate(times):
            elsewhere = time.astimezone(timezone(timedelta(hours=5, minutes=30)))
            assert store.fetch(COLLECTION, Equal("occurred_at", elsewhere), ["item_index"]).to_pylist() == [
                {"item_index": index}
            ]

    def test_fetch_gives_the_columns_asked_for_in_their_order_and_type(self, store: VectorStore) -> None:
        store.upsert(COLLECTION, many(4))
        columns = ["vector", "source_id", "id"]
        found = store.fetch(COLLECTION, In("item_index", (1, 2)), columns)
        assert found.schema == pa.schema([record_schema(4).field(column) for column in columns])
        assert found.sort_by("id") == many(4).slice(1, 2).select(columns).sort_by("id")

    def test_an_unknown_column_is_refused(self, store: VectorStore) -> None:
        with pytest.raises(StoreError, match="colour"):
            store.fetch(COLLECTION, EVERYTHING, ["id", "colour"])
        with pytest.raises(StoreError, match="colour"):
            list(store.scan(COLLECTION, ["colour"]))

    def test_scan_gives_every_row_once_in_batches(self, store: VectorStore) -> None:
        store.upsert(COLLECTION, many(100))
        batches = list(store.scan(COLLECTION, ["id", "vector"], batch_rows=16))
        assert max(batch.num_rows for batch in batches) <= 16
        assert pa.Table.from_batches(batches).sort_by("id") == many(100).select(["id", "vector"]).sort_by("id")
        some = list(store.scan(COLLECTION, ["source_id"], Equal("source_id", "folder/3.txt")))
        assert sum(batch.num_rows for batch in some) == 8

    def test_counting(self, store: VectorStore) -> None:
        store.upsert(COLLECTION, many(20))
        assert store.count(COLLECTION) == 20
        assert store.count(COLLECTION, Equal("source_id", "folder/1.txt")) == 8
        assert store.count_by(COLLECTION, "source_id") == {"folder/0.txt": 8, "folder/1.txt": 8, "folder/2.txt": 4}
        assert store.count_by(COLLECTION, "source_id", Equal("item_index", 7)) == {"folder/0.txt": 1, "folder/1.txt": 1}

    def test_counting_by_metadata_counts_its_texts(self, store: VectorStore) -> None:
        values = ["en", "en", "de", 7, None, "a\x1eb"]
        store.upsert(
            COLLECTION, table([row(item_index=index, metadata={"in": value}) for index, value in enumerate(values)])
        )
        assert store.count_by(COLLECTION, "metadata.in") == {"en": 2, "de": 1, "a\x1eb": 1}
        assert store.count_by(COLLECTION, "text", Equal("item_index", 99)) == {}

    @pytest.mark.parametrize("field", ["page", "vector", "colour", "metadata"])
    def test_only_text_fields_can_be_counted_by(self, store: VectorStore, field: str) -> None:
        with pytest.raises(StoreError, match=field):
            store.count_by(COLLECTION, field)

    def test_deleting_by_id_by_source_and_by_filter(self, store: VectorStore) -> None:
        store.upsert(COLLECTION, many(20))
        ids = tuple(many(3)["id"].to_pylist())
        assert store.delete(COLLECTION, In("id", (*ids, "unknown"))) == 3
        assert store.delete(COLLECTION, In("source_id", ("folder/0.txt", "folder/9.txt"))) == 5
        assert store.delete(COLLECTION, Range("item_index", at_least=4)) == 4
        assert store.delete(COLLECTION, In("id", ())) == 0
        assert store.count(COLLECTION) == 8
        assert store.delete(COLLECTION, EVERYTHING) == 8

    def test_many_ids_in_one_filter(self, store: VectorStore) -> None:
        store.upsert(COLLECTION, many(20))
        ids = tuple(f"unknown {number}" for number in range(5_000))
        assert store.delete(COLLECTION, In("id", ids + tuple(many(2)["id"].to_pylist()))) == 2

    def test_an_empty_collection_answers_everything(self, store: VectorStore) -> None:
        assert store.count(COLLECTION) == 0
        assert store.count_by(COLLECTION, "source_id") == {}
        assert store.delete(COLLECTION, EVERYTHING) == 0
        assert store.fetch(COLLECTION, EVERYTHING, ["id", "vector"]).num_rows == 0
        assert sum(batch.num_rows for batch in store.scan(COLLECTION, ["id"])) == 0
        hits = store.search(COLLECTION, np.ones(4, np.float32), 5)
        assert hits.schema.names == [*RECORD_FIELDS, "score"]
        assert hits.num_rows == 0
        store.maintain(COLLECTION)

    def test_flushing_changes_no_row_and_may_be_repeated(
        self, store: VectorStore, open_again: Callable[[], VectorStore]
    ) -> None:
        store.flush()
        store.upsert(COLLECTION, many(5))
        store.delete(COLLECTION, In("id", (many(5)["id"][0].as_py(),)))
        store.flush()
        store.flush()
        assert store.count(COLLECTION) == 4
        assert open_again().count(COLLECTION) == 4
        assert not store.damaged()
        assert not store.is_doubtful(COLLECTION)
        store.trust(COLLECTION)

    def test_maintenance_changes_no_row(self, store: VectorStore) -> None:
        for first in range(0, 40, 4):
            store.upsert(COLLECTION, many(4, first=first, seed=first))
        before = stored(store)
        figures = store.maintain(COLLECTION)
        assert all(isinstance(figure, int | float) for figure in figures.values())
        assert stored(store) == before


class Search(_OnOneStore):
    """Nearest neighbours."""

    def test_the_nearest_come_first_with_their_cosine_similarity(self, store: VectorStore) -> None:
        records = many(200, seed=3)
        store.upsert(COLLECTION, records)
        query = many(1, seed=9)["vector"].combine_chunks().flatten().to_numpy()
        hits = store.search(COLLECTION, query, 10)
        cosines = np.stack(records["vector"].to_numpy()) @ query
        best = np.argsort(-cosines)[:10]
        assert hits["id"].to_pylist() == [records["id"][index].as_py() for index in best]
        np.testing.assert_allclose(hits["score"].to_numpy(), cosines[best], atol=1e-5)

    def test_hits_are_the_record_without_its_vector_and_the_score(self, store: VectorStore) -> None:
        written = row(metadata={"year": 2024}, page=4)
        store.upsert(COLLECTION, table([written]))
        hits = store.search(COLLECTION, np.array([1, 0, 0, 0], np.float32), 5)
        expected = [record_schema(4).field(name) for name in RECORD_FIELDS]
        assert [hits.schema.field(name) for name in RECORD_FIELDS] == expected
        assert hits.schema.names[-1] == "score"
        assert hits.schema.field("score").type == pa.float32()
        assert hits.drop_columns("score").to_pylist() == [{name: written[name] for name in RECORD_FIELDS}]
        assert hits["score"].to_pylist() == pytest.approx([1.0])

    def test_scores_are_cosines_for_vectors_of_any_length(self, store: VectorStore) -> None:
        vectors = ([3.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0])
        store.upsert(COLLECTION, table(row(item_index=index, vector=vector) for index, vector in enumerate(vectors)))
        hits = store.search(COLLECTION, np.array([7, 0, 0, 0], np.float32), 9)
        assert hits["item_index"].to_pylist() == [0, 1, 2, 3]
        assert hits["score"].to_pylist() == pytest.approx([1.0, 0.5**0.5, 0.0, -1.0], abs=1e-6)

    def test_the_filter_holds_before_the_nearest_are_taken(self, store: VectorStore) -> None:
        near = [row("near.txt", index, metadata={"kind": "near"}) for index in range(50)]
        far = [row("far.txt", index, metadata={"kind": "far"}, vector=[-1.0, 0.0, 0.0, 0.1]) for index in range(5)]
        store.upsert(COLLECTION, table(near + far))
        query = np.array([1, 0, 0, 0], np.float32)
        for where in (
            Equal("source_id", "far.txt"),
            Equal("metadata.kind", "far"),
            Not(Equal("metadata.kind", "near")),
        ):
            assert store.search(COLLECTION, query, 3, where)["source_id"].to_pylist() == ["far.txt"] * 3
            assert store.search(COLLECTION, query, 99, where).num_rows == 5

    def test_equal_scores_come_in_the_order_of_ids(self, store: VectorStore) -> None:
        store.upsert(COLLECTION, table(row(f"{number}.txt") for number in range(9)))
        ids = store.search(COLLECTION, np.array([1, 0, 0, 0], np.float32), 9)["id"].to_pylist()
        assert ids == sorted(ids)

    def test_a_replaced_row_is_found_where_it_now_lies(self, store: VectorStore) -> None:
        store.upsert(COLLECTION, table([row("moved.txt"), row("stays.txt", vector=[0.0, 0.0, 1.0, 0.0])]))
        store.upsert(COLLECTION, table([row("moved.txt", vector=[0.0, 1.0, 0.0, 0.0])]))
        hits = store.search(COLLECTION, np.array([0, 1, 0, 0], np.float32), 1)
        assert hits["source_id"].to_pylist() == ["moved.txt"]

    @pytest.mark.parametrize(
        "vector", [np.ones(3, np.float32), np.zeros(4, np.float32), np.full(4, np.nan, np.float32)]
    )
    def test_a_query_that_cannot_be_compared_is_refused(self, store: VectorStore, vector: Any) -> None:
        store.upsert(COLLECTION, many(3))
        with pytest.raises(StoreError, match="query vector"):
            store.search(COLLECTION, vector, 3)


NUMBERS = (0, 1, -1, 7, 2024, 2**31, -(2**31) - 1, 2**53, 2**53 + 1, 2**63, 2**64 + 1, 10**30, -(10**30),
           0.5, -1.25, -1.3, 1.0, 2024.0, 1e22, 5e-324, -0.0, float("inf"))  # fmt: skip
INFINITIES = (float("inf"), float("-inf"))
NAMES = ("year", "a.b", "it's", '"', "", "😀\x1f")
TIMES = (NOON, NOON + timedelta(microseconds=1), datetime(1900, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC))
TEXT_FIELDS = ("source_id", "partition", "text", "uri", "id")
INTEGER_FIELDS = ("item_index", "page", "start")

texts = st.sampled_from(NASTY_TEXTS) | st.text(max_size=6)
numbers = st.sampled_from(NUMBERS) | st.integers() | st.floats(allow_nan=False)
scalars = texts | numbers | st.booleans()
fields = st.sampled_from(
    (*TEXT_FIELDS, *INTEGER_FIELDS, *(f"metadata.{name}" for name in NAMES), *(f"numbers.{name}" for name in NAMES))
)
metadata_values = st.none() | scalars.filter(lambda value: value not in INFINITIES) | st.just([1]) | st.just({"a": 1})


@st.composite
def leaves(draw: st.DrawFn) -> Filter:
    """Return a filter on one field, mostly with values that rows have too."""
    if draw(st.integers(0, 7)) == 0:
        first, second = draw(st.sampled_from(TIMES)), draw(st.sampled_from(TIMES))
        times: tuple[Filter, ...] = (
            Equal("occurred_at", first),
            Range("occurred_at", first, second),
            Range("occurred_at", below=first),
        )
        return draw(st.sampled_from(times))
    field = draw(fields)
    kind = draw(st.sampled_from((texts, numbers, st.booleans(), scalars)))
    lower, upper = draw(st.none() | kind), draw(st.none() | kind)
    choices: tuple[st.SearchStrategy[Filter], ...] = (
        st.builds(Equal, st.just(field), scalars),
        st.builds(In, st.just(field), st.lists(scalars, max_size=4).map(tuple)),
        st.just(Range(field, lower, upper)),
        st.builds(Prefix, st.just(field), texts.map(lambda text: text[:3])),
        st.just(Exists(field)),
    )
    return draw(draw(st.sampled_from(choices)))


def _combined(parts: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    several = st.lists(parts, max_size=3).map(tuple)
    return st.builds(Not, parts) | st.builds(And, several) | st.builds(Or, several)


filters = st.recursive(leaves(), _combined, max_leaves=6)
generated_rows: st.SearchStrategy[Row] = st.builds(
    dict,
    source_id=texts,
    partition=texts,
    text=st.none() | texts,
    uri=st.none() | texts,
    page=st.none() | st.sampled_from([0, 1, 7, 2024, 2**31 - 1]),
    start=st.none() | st.sampled_from([0, 1, 2024, 2**53, 2**53 + 1, 2**62]),
    occurred_at=st.sampled_from(TIMES),
    metadata=st.dictionaries(st.sampled_from(NAMES), metadata_values),
)


class Filters(_OnOneStore):
    """The meaning of filters, held against the reference."""

    #: The largest `start` and `end` that the store holds exactly; it refuses what lies beyond.
    LARGEST_OFFSET: ClassVar[int] = 2**63 - 1

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        generated=st.lists(generated_rows, min_size=1, max_size=12), wheres=st.lists(filters, min_size=4, max_size=12)
    )
    def test_filters_mean_what_the_reference_says(
        self, store: VectorStore, generated: list[Row], wheres: list[Filter]
    ) -> None:
        store.delete(COLLECTION, EVERYTHING)
        rows = [
            one | {"item_index": number, "id": f"id {number}", "start": self._held(one["start"])}
            for number, one in enumerate(generated)
        ]
        store.upsert(COLLECTION, table(row(**one) for one in rows))
        for where in wheres:
            expected = {one["id"] for one in rows if matches(where, one)}
            assert set(store.fetch(COLLECTION, where, ["id"])["id"].to_pylist()) == expected, where
            assert store.count(COLLECTION, where) == len(expected)

    def _held(self, offset: int | None) -> int | None:
        return None if offset is None else min(offset, self.LARGEST_OFFSET)

    def test_values_keep_their_type(self, store: VectorStore) -> None:
        values: dict[str, Any] = {"number": 2024, "text": "2024", "true": True, "one": 1, "list": [2024], "null": None}
        store.upsert(COLLECTION, table(row(source_id=name, metadata={"year": value}) for name, value in values.items()))

        def found(where: Filter) -> set[str]:
            return set(store.fetch(COLLECTION, where, ["source_id"])["source_id"].to_pylist())

        assert found(Equal("metadata.year", 2024)) == found(Equal("metadata.year", 2024.0)) == {"number"}
        assert found(Equal("metadata.year", "2024")) == {"text"}
        assert found(Equal("metadata.year", True)) == {"true"}
        assert found(Equal("metadata.year", 1)) == {"one"}
        assert found(Exists("metadata.year")) == set(values) - {"null"}
        assert found(Range("metadata.year", at_least=1)) == {"number", "one"}
        assert found(Not(Equal("metadata.year", 2024))) == set(values) - {"number"}
        assert found(Equal("item_index", "0")) == found(Equal("source_id", 1)) == set()

    def test_texts_that_are_numbers_compare_as_numbers_where_that_is_asked(self, store: VectorStore) -> None:
        prices = ("9.50", "10", "12.00", "0012", "100", "1e3", "-3", "free", "+12", "", 11, True)
        rows = [row(item_index=index, metadata={"price": price}) for index, price in enumerate(prices)]
        store.upsert(COLLECTION, table(rows))
        more = row("more.txt", metadata={"price": "7", "n": "8"})
        store.upsert(COLLECTION, table([more]))
        store.delete(COLLECTION, Equal("id", more["id"]))

        def found(where: Filter) -> list[Any]:
            places = store.fetch(COLLECTION, where, ["item_index"])["item_index"].to_pylist()
            return [prices[place] for place in sorted(places)]

        number = "numbers.price"
        assert found(Range(number, at_least=10)) == ["10", "12.00", "0012", "100", "1e3"]
        assert found(Range(number, at_least=-3, below=10.0)) == ["9.50", "-3"]
        assert found(Equal(number, 12)) == ["12.00", "0012"]
        assert found(In(number, (10, 1000.0, "free"))) == ["10", "1e3"]
        assert found(Exists(number)) == ["9.50", "10", "12.00", "0012", "100", "1e3", "-3"]
        assert found(Not(Exists(number))) == ["free", "+12", "", 11, True]
        assert found(And((Equal(number, 12), Not(Prefix("metadata.price", "0"))))) == ["12.00"]
        assert found(Prefix(number, "1")) == found(Equal(number, "10")) == []
        assert found(Equal("metadata.price", "10")) == ["10"]
        assert found(Equal("numbers.other", 1)) == []

    def test_numbers_are_told_apart_and_ordered_exactly(self, store: VectorStore) -> None:
        ordered = [
            -(2**64) - 1,
            -(2**64),
            -1.3,
            -1.25,
            -1,
            -0.5,
            0,
            5e-324,
            0.1,
            0.1 + 2**-56,
            0.5,
            1,
            1.25,
            1.3,
            9,
            10,
        ]
        ordered += [2**51 + 0.5, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 2**64 + 1, 1e300]
        rows = [row(item_index=index, metadata={"n": number}) for index, number in enumerate(ordered)]
        store.upsert(COLLECTION, table(rows))
        for index, number in enumerate(ordered):
            equal = store.fetch(COLLECTION, Equal("metadata.n", number), ["item_index"])["item_index"].to_pylist()
            assert equal == [index], number
            assert store.count(COLLECTION, Range("metadata.n", below=number)) == index, number

    def test_names_and_values_cannot_be_mistaken_for_each_other(self, store: VectorStore) -> None:
        forged = [
            "\x1f.year\x1fn2500032024\x1f",
            "a\x1f.year\x1fs2024",
            '","year":2024,"',
            ".year",
            "syear",
            "\x1e001f",
        ]
        rows = [row("value.txt", index, metadata={"note": text}) for index, text in enumerate(forged)]
        rows += [row("name.txt", index, metadata={text: "x"}) for index, text in enumerate(forged)]
        store.upsert(COLLECTION, table(rows))
        assert store.count(COLLECTION, Exists("metadata.year")) == 0
        assert store.count(COLLECTION, Exists("metadata.note")) == len(forged)
        for text in forged:
            assert store.count(COLLECTION, Equal("metadata.note", text)) == 1
            assert store.count(COLLECTION, Equal(f"metadata.{text}", "x")) == 1
        assert store.count_by(COLLECTION, "metadata.note") == dict.fromkeys(forged, 1)

    @pytest.mark.parametrize("field", ["vector", "metadata", "colour", "score"])
    def test_a_field_that_no_record_has_is_refused(self, store: VectorStore, field: str) -> None:
        with pytest.raises(StoreError, match=field):
            store.count(COLLECTION, Equal(field, "x"))

    def test_timestamps_need_a_time_zone_and_are_not_for_metadata(self, store: VectorStore) -> None:
        with pytest.raises(StoreError, match="time zone"):
            store.count(COLLECTION, Equal("occurred_at", NOON.replace(tzinfo=None)))
        with pytest.raises(StoreError, match="metadata"):
            store.count(COLLECTION, Range("metadata.created", at_least=NOON))

    def test_deep_nesting_is_answered_or_refused(self, store: VectorStore) -> None:
        store.upsert(COLLECTION, many(3))
        where: Filter = Equal("item_index", 1)
        for _ in range(500):
            where = Not(where)
        assert store.count(COLLECTION, where) == 1
        for level in range(20):
            where = And((where, EVERYTHING)) if level % 2 else Or((where, Equal("item_index", 9)))
        assert store.count(COLLECTION, where) == 1


keys = st.integers(0, 11)
steps = st.one_of(
    st.tuples(st.just("upsert"), st.sets(keys, min_size=1)),
    st.tuples(st.just("delete ids"), st.sets(keys)),
    st.tuples(st.just("delete sources"), st.sets(st.integers(0, 3), max_size=2)),
    st.tuples(st.just("maintain"), st.just(set[int]())),
)


class Histories(_OnOneStore):
    """Any order of writes, deletions and maintenance, held against a dictionary."""

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(history=st.lists(steps, max_size=12))
    def test_a_store_is_a_dictionary(self, store: VectorStore, history: list[tuple[str, set[int]]]) -> None:
        store.delete(COLLECTION, EVERYTHING)
        expected: dict[str, Row] = {}
        for moment, (step, numbers) in enumerate(history):
            if step == "upsert":
                rows = [row(f"{key % 4}.txt", key, text=f"written at {moment}") for key in sorted(numbers)]
                new = sum(one["id"] not in expected for one in rows)
                assert store.upsert(COLLECTION, table(rows)) == Written(new, len(rows) - new)
                expected |= {one["id"]: one for one in rows}
            elif step == "maintain":
                store.maintain(COLLECTION)
            else:
                where = In(
                    *(("source_id", tuple(f"{number}.txt" for number in numbers))
                      if step == "delete sources"
                      else ("id", tuple(row(f"{key % 4}.txt", key)["id"] for key in numbers)))
                )  # fmt: skip
                gone = [one for one, fields in expected.items() if matches(where, fields)]
                assert store.delete(COLLECTION, where) == len(gone)
                for one in gone:
                    del expected[one]
            assert store.count(COLLECTION) == len(expected)
        assert stored(store) == expected
