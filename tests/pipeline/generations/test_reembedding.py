"""A collection gets another model while it is used: nothing lost, nothing twice, whoever dies and whoever races."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.encoders.tiny_models import add_modules, build_encoder
from tests.pipeline.generations.two_models import COLLECTION, NEW, OLD, HashEncoder, Writers, installed, spec_of
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.configured import lease_configured
from vectorize_pipelines.errors import LedgerError, SettingsError, StoreError, UnknownModelError
from vectorize_pipelines.pipeline.aliases import reconcile_live, repair_alias
from vectorize_pipelines.pipeline.generations import comparison
from vectorize_pipelines.pipeline.generations import lifecycle as switching
from vectorize_pipelines.pipeline.generations.begin import Wanted, begin
from vectorize_pipelines.pipeline.writing import DirectWriter, write_batch
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL
from vectorize_pipelines.state.generations import Generations, State
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.state.home import generations_lock
from vectorize_pipelines.stores.filters.expressions import In

TEXTS = {f"s{n}": f"text number {n}" for n in range(7)}


@pytest.fixture
def writers(tmp_path: Path) -> Writers:
    return installed(tmp_path / "installation")


def states(writers: Writers) -> dict[int, State]:
    with closing(writers.generations()) as generations:
        return {each.dimension: each.state for each in generations.of(COLLECTION)}


def switched(writers: Writers) -> None:
    with closing(writers.generations()) as generations:
        switching.switch(writers.settings, writers.store, generations, COLLECTION)


def rolled_back(writers: Writers) -> None:
    with closing(writers.generations()) as generations:
        switching.rollback(writers.settings, writers.store, generations, COLLECTION)


def test_the_new_generation_has_every_row_by_the_new_model_and_nothing_is_encoded_twice(writers: Writers) -> None:
    writers.write(TEXTS)
    writers.write({"other day": "text of another day"}, day=3)
    stream = writers.reembed()
    expected = {**TEXTS, "other day": "text of another day"}
    assert writers.texts(writers.physical(NEW)) == expected
    assert writers.texts() == expected
    assert writers.store.collection(COLLECTION).dimension == OLD
    assert (stream.totals.sum().encoded, stream.touched) == (8, {"2024-03-01", "2024-03-04"})
    assert states(writers) == {OLD: State.LIVE, NEW: State.READY}
    assert writers.reembed().totals.sum().encoded == 0
    assert len(writers.encoders[NEW].asked) == 8


def test_day_by_day_and_ready_once_all_days_are_there(writers: Writers) -> None:
    for day in range(3):
        writers.write({f"s{day}": f"text of day {day}"}, day=day)
    writers.reembed(["2024-03-02"])
    assert set(writers.texts(writers.physical(NEW))) == {"s1"}
    assert states(writers)[NEW] is State.BUILDING
    assert writers.reembed().totals.sum().encoded == 2
    assert states(writers)[NEW] is State.READY


def test_what_arrives_meanwhile_goes_to_both(writers: Writers) -> None:
    writers.write(TEXTS)
    writers.reembed([])
    writers.write({"s1": "changed", "new": "came meanwhile"}, stale=[In("source_id", ("s2",))])
    writers.reembed()
    expected = {**TEXTS, "s1": "changed", "new": "came meanwhile"}
    del expected["s2"]
    assert writers.texts() == writers.texts(writers.physical(NEW)) == expected


def test_a_row_whose_day_or_metadata_changed_keeps_its_vector(writers: Writers) -> None:
    writers.write(TEXTS)
    writers.reembed()
    asked = len(writers.encoders[NEW].asked)
    # Behind the back of whoever mirrors.
    write_batch(DirectWriter(writers.settings, writers.store), writers.batch({"s1": TEXTS["s1"]}, day=9))
    writers.reembed()
    assert len(writers.encoders[NEW].asked) == asked
    assert writers.store.count_by(writers.physical(NEW), "partition") == {"2024-03-01": 6, "2024-03-10": 1}


def test_what_one_generation_has_alone_is_brought_into_line(writers: Writers) -> None:
    writers.write(TEXTS)
    writers.reembed()
    new = writers.physical(NEW)
    writers.store.delete(new, In("source_id", ("s1", "s2")))
    write_batch(
        DirectWriter(writers.settings, writers.store),
        replace(writers.batch({"extra": "alone"}, dimension=NEW), collection=new, physical=new),
    )
    live, other = pair(writers)
    with closing(writers.generations()) as generations:
        found = comparison.differences(writers.store, generations, live, other)
    assert (len(found.missing), len(found.extra), len(found.changed)) == (2, 1, 0)
    assert found.days == {"2024-03-01": (7, 6)}
    writers.reembed()
    assert writers.texts(new) == TEXTS


def pair(writers: Writers) -> tuple[Any, Any]:
    with closing(writers.generations()) as generations:
        by_dimension = {each.dimension: each for each in generations.of(COLLECTION)}
    return by_dimension[OLD], by_dimension[NEW]


def test_switch_turns_readers_and_rollback_turns_them_back_with_all_that_came(writers: Writers) -> None:
    writers.write(TEXTS)
    writers.reembed()
    switched(writers)
    assert writers.store.collection(COLLECTION).dimension == NEW
    assert states(writers) == {OLD: State.KEPT, NEW: State.LIVE}
    writers.write({"after": "came after the switch"}, dimension=NEW)
    writers.write({"late": "of a run that began before the switch"}, dimension=OLD)
    expected = {**TEXTS, "after": "came after the switch", "late": "of a run that began before the switch"}
    assert writers.texts() == expected
    rolled_back(writers)
    assert writers.store.collection(COLLECTION).dimension == OLD
    assert writers.texts() == expected
    switched(writers)  # and forward again
    assert writers.texts() == expected


def test_a_writer_that_saw_no_generation_writes_to_the_one_that_has_come(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers.write(TEXTS)
    really = Generations.written
    looks: list[int] = []

    def while_it_writes(self: Generations, collection: str) -> Any:
        found = really(self, collection)
        if collection == COLLECTION and not looks:
            looks.append(len(found))
            writers.reembed()  # begins, copies and ends between this writer's look and its write
        return found

    monkeypatch.setattr(Generations, "written", while_it_writes)
    writers.write({"s1": "changed", "straggler": "text"})
    assert looks == [0]
    assert writers.texts() == writers.texts(writers.physical(NEW)) == {**TEXTS, "s1": "changed", "straggler": "text"}


def test_what_was_changed_while_it_was_encoded_is_not_overwritten(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers.write(TEXTS)
    encoder = writers.encoders[NEW]
    really = encoder.encode
    changed: list[str] = []

    def meanwhile(items: Any, purpose: Any = "document") -> Any:
        if not changed:
            changed.append("s1")
            writers.write({"s1": "changed"}, stale=[In("source_id", ("s2",))])
        return really(items, purpose)

    monkeypatch.setattr(encoder, "encode", meanwhile)
    writers.reembed()
    expected = {name: text for name, text in TEXTS.items() if name != "s2"} | {"s1": "changed"}
    assert writers.texts() == writers.texts(writers.physical(NEW)) == expected
    assert states(writers)[NEW] is State.READY


def test_a_generation_that_cannot_be_written_fails_the_write_and_nothing_is_acknowledged(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers.write(TEXTS)
    writers.reembed()
    new = writers.physical(NEW)
    really = writers.store.upsert

    def failing(name: str, records: Any) -> Any:
        if name == new:
            raise StoreError("the store is away")
        return really(name, records)

    batch = writers.batch({"s1": "changed"})
    acknowledged: list[str] = []
    batch.acknowledge = lambda: acknowledged.append("batch")
    with monkeypatch.context() as patch, closing(writers.mirrors()) as mirrors:
        patch.setattr(writers.store, "upsert", failing)
        with pytest.raises(StoreError, match="away"):
            write_batch(mirrors, batch)
    assert acknowledged == []
    assert writers.texts() == TEXTS, "the live generation is written last: the next run finds the change again"


def test_several_generations_are_written_under_one_lock(writers: Writers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a copy of a row could come after the row's next version."""
    writers.write(TEXTS)
    really = writers.store.upsert
    held: list[bool] = []

    def looking(name: str, records: Any) -> Any:
        try:
            with FileLock(generations_lock(writers.settings, COLLECTION), timeout=0):
                held.append(False)
        except Timeout:
            held.append(True)
        return really(name, records)

    monkeypatch.setattr(writers.store, "upsert", looking)
    writers.reembed()
    writers.write({"s1": "changed"})
    assert held == [True, True, True]


def test_only_one_generation_is_in_the_making_and_what_is_there_is_not_made_again(writers: Writers) -> None:
    writers.write(TEXTS)
    with pytest.raises(SettingsError, match="name the model"):
        _begin(writers, Wanted(""))
    with pytest.raises(SettingsError, match="already"):
        _begin(writers, Wanted(DEFAULT_TEXT_MODEL, dimension=OLD))
    writers.reembed()
    assert _begin(writers, Wanted("")) == _begin(writers, Wanted(DEFAULT_TEXT_MODEL, dimension=NEW)) == pair(writers)
    with pytest.raises(SettingsError, match="drop it first"):
        _begin(writers, Wanted(DEFAULT_TEXT_MODEL, dimension=16))
    switched(writers)
    with pytest.raises(SettingsError, match="has that already"):
        _begin(writers, Wanted(DEFAULT_TEXT_MODEL, dimension=OLD))
    with pytest.raises(SettingsError, match="nothing to switch"):
        switched(writers)


def test_a_model_that_does_not_encode_gets_no_generation(writers: Writers, tmp_path: Path) -> None:
    writers.write(TEXTS)
    of_tokens = add_modules(build_encoder(tmp_path / "of_tokens", "bert"), normalize=False)
    with closing(writers.generations()) as generations:
        with pytest.raises(UnknownModelError, match="makes vectors of tokens, none of a text"):
            begin(
                writers.settings,
                writers.store,
                generations,
                COLLECTION,
                Wanted(str(of_tokens)),
                partial(lease_configured, writers.settings),
            )
        assert generations.of(COLLECTION) == []
    writers.write({"s1": "written all the same"})


def _begin(writers: Writers, wanted: Wanted) -> Any:
    with closing(writers.generations()) as generations:
        return begin(writers.settings, writers.store, generations, COLLECTION, wanted, writers.lease)


def test_the_live_generation_is_dropped_last_and_the_name_is_free_again(writers: Writers) -> None:
    writers.write(TEXTS)
    writers.reembed()
    switched(writers)
    old, new = writers.physical(OLD), writers.physical(NEW)
    with closing(writers.generations()) as generations:
        with pytest.raises(SettingsError, match="drop the others first"):
            switching.drop(writers.settings, writers.store, generations, new)
        switching.drop(writers.settings, writers.store, generations, old)
    assert states(writers) == {OLD: State.DROPPED, NEW: State.LIVE}
    writers.write({"s1": "changed"}, dimension=NEW)
    assert writers.texts() == {**TEXTS, "s1": "changed"}
    writers.reembed(dimension=OLD)  # under the old name again
    assert writers.texts(old) == {**TEXTS, "s1": "changed"}
    with closing(writers.generations()) as generations:
        switching.drop(writers.settings, writers.store, generations, old)
        switching.drop(writers.settings, writers.store, generations, new)
    assert writers.store.collections() == []
    writers.begin()
    writers.write(TEXTS)
    assert writers.texts() == TEXTS


def test_what_was_kept_is_dropped_when_its_time_is_over(tmp_path: Path) -> None:
    writers = installed(tmp_path / "installation", VECTORIZE_REEMBEDDING__KEEP_DAYS="0")
    writers.write(TEXTS)
    writers.reembed()
    with closing(writers.generations()) as generations:
        assert switching.drop_expired(writers.settings, writers.store, generations) == []
        switching.switch(writers.settings, writers.store, generations, COLLECTION)
        (dropped,) = switching.drop_expired(writers.settings, writers.store, generations)
    assert dropped.dimension == OLD
    assert [each.dimension for each in writers.store.collections()] == [NEW]
    with pytest.raises(SettingsError, match="no earlier generation"):
        rolled_back(writers)


def test_what_was_turned_to_again_meanwhile_is_not_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writers = installed(tmp_path / "installation", VECTORIZE_REEMBEDDING__KEEP_DAYS="0")
    writers.write(TEXTS)
    writers.reembed()
    switched(writers)
    with closing(writers.generations()) as generations:
        as_it_was = generations.all()
        rolled_back(writers)
        with monkeypatch.context() as patch:
            patch.setattr(generations, "all", lambda: as_it_was)
            assert switching.drop_expired(writers.settings, writers.store, generations) == []
    assert states(writers) == {OLD: State.LIVE, NEW: State.KEPT}
    assert writers.texts() == TEXTS


def test_a_rollback_turns_to_what_was_read_before_and_not_to_what_was_tried_before(writers: Writers) -> None:
    """One model was tried and given up, then another: back means back to the first, and on to the last."""
    newest = 64
    writers.encoders[newest] = HashEncoder(newest)
    writers.write(TEXTS)
    writers.reembed()
    switched(writers)
    rolled_back(writers)
    writers.reembed(dimension=newest)
    switched(writers)
    assert states(writers) == {OLD: State.KEPT, NEW: State.KEPT, newest: State.LIVE}
    rolled_back(writers)
    assert states(writers) == {OLD: State.LIVE, NEW: State.KEPT, newest: State.KEPT}
    with pytest.raises(SettingsError, match="no earlier generation"):
        rolled_back(writers)
    switched(writers)
    assert states(writers) == {OLD: State.KEPT, NEW: State.KEPT, newest: State.LIVE}


def test_only_what_was_compared_is_switched_to(writers: Writers) -> None:
    writers.write(TEXTS)
    writers.reembed()
    compared = pair(writers)
    with closing(writers.generations()) as generations:
        switching.drop(writers.settings, writers.store, generations, writers.physical(NEW))
        _begin(writers, Wanted(DEFAULT_TEXT_MODEL, dimension=NEW))  # of the same name, and empty
        with pytest.raises(SettingsError, match="nothing is switched"):
            switching.switch(writers.settings, writers.store, generations, COLLECTION, compared)
        assert writers.store.collection(COLLECTION).dimension == OLD
        switching.switch(writers.settings, writers.store, generations, COLLECTION, pair(writers))
    assert writers.store.collection(COLLECTION).dimension == NEW


def test_encoders_of_dropped_generations_are_given_back(writers: Writers, monkeypatch: pytest.MonkeyPatch) -> None:
    lent: list[int | None] = []

    @contextmanager
    def lease(model: str, dimension: int | None) -> Iterator[Any]:
        lent.append(dimension)
        try:
            yield writers.encoders[dimension or 0]
        finally:
            lent.remove(dimension)

    monkeypatch.setattr(writers, "lease", lease)
    writers.write(TEXTS)
    _begin(writers, Wanted(DEFAULT_TEXT_MODEL, dimension=NEW))
    with closing(writers.mirrors()) as mirrors:
        write_batch(mirrors, writers.batch({"s1": "first"}))
        assert lent == [NEW]
        with closing(writers.generations()) as generations:
            switching.drop(writers.settings, writers.store, generations, writers.physical(NEW))
        write_batch(mirrors, writers.batch({"s1": "second"}))
        assert lent == []
    assert writers.texts()["s1"] == "second"


class _Lost(ExclusiveLock):
    def check(self) -> None:
        raise LedgerError("the lock was lost")


@pytest.mark.parametrize("mirrored", [False, True])
def test_nothing_is_written_once_the_lock_is_lost(writers: Writers, mirrored: bool) -> None:
    batch = writers.batch({"s1": "first"})
    batch.exclusive = lambda: nullcontext(_Lost())
    writer = writers.mirrors() if mirrored else DirectWriter(writers.settings, writers.store)
    with closing(writer), pytest.raises(LedgerError, match="lost"):
        write_batch(writer, batch)
    assert writers.texts() == {}


def test_who_died_between_alias_and_notes_is_put_right(writers: Writers) -> None:
    writers.write(TEXTS)
    writers.reembed()
    writers.store.set_alias(COLLECTION, writers.physical(NEW))  # and died
    with closing(writers.generations()) as generations:
        live = reconcile_live(writers.settings, writers.store, generations, COLLECTION, ExclusiveLock())
    assert live is not None
    assert live.dimension == NEW
    assert states(writers) == {OLD: State.KEPT, NEW: State.LIVE}
    rolled_back(writers)
    assert states(writers) == {OLD: State.LIVE, NEW: State.KEPT}


def test_runs_put_right_what_a_switch_that_died_has_left(writers: Writers) -> None:
    repair_alias(writers.settings, writers.store, COLLECTION)  # nothing to put right
    writers.write(TEXTS)
    writers.reembed()
    writers.store.set_alias(COLLECTION, writers.physical(NEW))  # and died
    repair_alias(writers.settings, writers.store, COLLECTION)
    assert states(writers) == {OLD: State.KEPT, NEW: State.LIVE}


def test_a_collection_whose_model_is_gone_gets_another_one(writers: Writers, monkeypatch: pytest.MonkeyPatch) -> None:
    writers.write(TEXTS)

    def without_the_old(model: str, **given: Any) -> Any:
        if given.get("dimension") == OLD:
            raise UnknownModelError("no such model")
        return describe_model(model, **given)

    monkeypatch.setattr("vectorize_pipelines.pipeline.generations.begin.describe_model", without_the_old)
    writers.reembed()
    assert writers.texts(writers.physical(NEW)) == TEXTS
    assert pair(writers)[0].fingerprint == spec_of(OLD).fingerprint


def test_problems_are_found_before_a_switch(writers: Writers) -> None:
    texts = {**TEXTS, **{f"more{n}": f"the keeper's note of day {n}" for n in range(13)}}
    writers.write(texts)
    writers.reembed()
    live, new = pair(writers)
    with closing(writers.generations()) as generations:
        good = comparison.compare(writers.store, generations, live, new, writers.encoders[NEW])
        assert good.problems(1.0) == []
        assert (good.rows, good.canaries.recall) == ((20, 20), 1.0)
        assert good.overlap.sampled == 20
        assert good.overlap.overlap is not None
        assert 0 < good.overlap.overlap < 1
        wrong = writers.batch({"s1": TEXTS["s1"]}, dimension=NEW)
        spoilt = wrong.records.set_column(
            wrong.records.num_columns - 1,
            wrong.records.schema.field("vector"),
            writers.batch({"s1": "something else"}, dimension=NEW).records["vector"],
        )
        writers.store.upsert(new.physical, spoilt)
        writers.store.delete(new.physical, In("source_id", ("s2",)))
        problems = comparison.compare(writers.store, generations, live, new, writers.encoders[NEW]).problems(1.0)
    assert len(problems) == 2
    assert "1 rows are missing" in problems[0]
    assert "did not come first" in problems[1]


@pytest.mark.parametrize(("rows", "sampled"), [(11, 0), (12, 12)])
def test_neighbours_are_not_compared_where_all_rows_are_near(writers: Writers, rows: int, sampled: int) -> None:
    writers.write({f"s{n}": f"text number {n}" for n in range(rows)})
    writers.reembed()
    found = comparison.neighbour_overlap(writers.store, *pair(writers), writers.encoders[NEW])
    assert found.sampled == sampled
    assert (found.overlap is None) == (sampled == 0)


def test_neighbours_are_compared_where_only_one_generation_is_small(writers: Writers) -> None:
    writers.write({f"s{n}": f"text number {n}" for n in range(12)})
    writers.reembed()
    live, new = pair(writers)
    writers.store.delete(live.physical, In("source_id", ("s0",)))
    assert comparison.neighbour_overlap(writers.store, live, new, writers.encoders[NEW]).sampled == 11


# ---- whatever happens, in whatever order

NAMES = st.sampled_from(["a", "b", "c", "d"])
OPERATIONS = st.one_of(
    st.tuples(st.just("write"), st.dictionaries(NAMES, st.sampled_from(["one", "two", "three"]), min_size=1)),
    st.tuples(st.just("delete"), NAMES),
    st.tuples(st.just("reembed"), st.none()),
    st.tuples(st.just("switch"), st.none()),
    st.tuples(st.just("rollback"), st.none()),
    st.tuples(st.just("killed while writing"), st.tuples(NAMES, st.integers(0, 3))),
    st.tuples(st.just("killed while reembedding"), st.integers(0, 3)),
)


class Killed(BaseException):
    """Stands for the death of the process: nothing catches it."""


@hypothesis_settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=st.lists(OPERATIONS, min_size=3, max_size=10))
@pytest.mark.slow
def test_all_generations_hold_what_was_acknowledged(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, Any]]
) -> None:
    writers = installed(tmp_path_factory.mktemp("installation"))
    expected: dict[str, str] = {}
    for name, argument in operations:
        _carry_out(writers, expected, name, argument)
        assert writers.texts() == expected
    if states(writers).get(NEW) in (None, State.BUILDING, State.READY):
        writers.reembed()
    for dimension in states(writers):
        assert writers.texts(writers.physical(dimension)) == expected


def _carry_out(writers: Writers, expected: dict[str, str], name: str, argument: Any) -> None:
    dimension = writers.store.collection(COLLECTION).dimension
    match name:
        case "write":
            writers.write(argument, dimension=dimension)
            expected |= argument
        case "delete":
            writers.write({}, stale=[In("source_id", (argument,))], dimension=dimension)
            expected.pop(argument, None)
        case "reembed" if states(writers).get(NEW) in (None, State.BUILDING, State.READY):
            writers.reembed()
        case "switch" if states(writers).get(NEW) in (State.READY, State.KEPT):
            switched(writers)
        case "rollback" if states(writers).get(NEW) is State.LIVE:
            rolled_back(writers)
        case "killed while writing":
            source, effects = argument
            _until_killed(writers, effects, lambda: writers.write({source: "killed"}, dimension=dimension))
            writers.write({source: "killed"}, dimension=dimension)  # what was not acknowledged comes again
            expected[source] = "killed"
        case "killed while reembedding" if states(writers).get(NEW) in (None, State.BUILDING):
            _until_killed(writers, argument, writers.reembed)


def _until_killed(writers: Writers, effects: int, action: Callable[[], Any]) -> None:
    """Ends an action after so many effects on the store."""
    left = effects

    def effect(really: Any) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return really(*arguments, **named)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for name in ("upsert", "delete", "ensure_collection", "set_alias"):
            patch.setattr(writers.store, name, effect(getattr(writers.store, name)))
        with suppress(Killed):
            action()


def test_every_generation_is_flushed_for_a_batch_that_wrote_nothing_the_live_one_last(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers.write(TEXTS)
    _begin(writers, Wanted(DEFAULT_TEXT_MODEL, dimension=NEW))
    flushed: list[list[str]] = []
    monkeypatch.setattr(writers.store, "flush", lambda names: flushed.append([*names]))
    writers.write({})
    assert flushed == [[writers.physical(NEW), writers.physical(OLD)]]
