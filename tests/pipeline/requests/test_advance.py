"""How far large requests are while they are encoded: told in the ledger, true, never back, and not of small ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pipeline.requests.installation import (
    DIMENSION,
    HashEncoder,
    Installation,
    batch_request,
    check_finished,
    text_request,
    vector_of,
)
from vectorize_pipelines.core.items import Item, Modality, content_hash
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.pipeline.encoding import ItemEncoder
from vectorize_pipelines.pipeline.requests import advance
from vectorize_pipelines.pipeline.requests.advance import Advance
from vectorize_pipelines.pipeline.requests.named_models import failing_the_request
from vectorize_pipelines.pipeline.requests.report import Report, TopicReport
from vectorize_pipelines.pipeline.reuse import VectorReuse
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.state.request_rows import RequestRow

DAY = "2026-03-01"


def item(text: str, index: int) -> Item:
    return Item("source", index, Modality.TEXT, text, None, content_hash(text), datetime(2026, 3, 1, tzinfo=UTC))


# ---- the encoder's parts


@given(
    contents=st.lists(st.integers(0, 20), max_size=60),
    again=st.lists(st.integers(0, 25), max_size=20),
    together=st.integers(1, 12),
)
def test_parts_have_every_vector_and_are_told_once(contents: list[int], again: list[int], together: int) -> None:
    """Whatever repeats, and whatever the run has encoded before."""
    calls: list[int] = []

    @contextmanager
    def lease() -> Iterator[Encoder]:
        yield HashEncoder(on_encode=lambda texts: calls.append(len(texts)))

    encoder = ItemEncoder(DIMENSION, lease, VectorReuse("model", None), most_rows=together, seconds_per_batch=0.0)
    for numbers in (contents, again):
        encoder.rows_together = together
        items = [item(f"text {number}", index) for index, number in enumerate(numbers)]
        told: list[int] = []
        vectors, refused = encoder.encode(items, [DAY] * len(items), Totals(), told.extend)
        assert not refused
        for each, vector in zip(items, vectors, strict=True):
            assert np.array_equal(vector, vector_of(each.text or ""))
        assert len(set(told)) == len(told)
        assert {items[n].text for n in told} == {each.text for each in items}
    encoder.close()
    assert sum(calls) == len({*contents, *again}), "each content is encoded once"


def test_without_anybody_to_tell_all_are_encoded_together() -> None:
    calls: list[int] = []

    @contextmanager
    def lease() -> Iterator[Encoder]:
        yield HashEncoder(on_encode=lambda texts: calls.append(len(texts)))

    items = [item(f"text {n}", n) for n in range(500)]
    encoder = ItemEncoder(DIMENSION, lease, VectorReuse("model", None), most_rows=10, seconds_per_batch=1.0)
    encoder.encode(items, [DAY] * 500, Totals())
    encoder.close()
    assert calls == [500]


# ---- what is noted


class Notes(Report):
    """The report of a run that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, int]] = []

    def advanced(self, requests: Sequence[Any]) -> None:
        self.told.append({pending.name: pending.done for pending in requests})


def pending(name: str, items: int) -> Any:
    """A request as far as its advance goes."""
    return SimpleNamespace(name=name, items=[None] * items, done=0)


def test_only_requests_that_take_long_are_followed() -> None:
    one, few, many = pending("one", 1), pending("few", 9), pending("many", 11)
    owners = [one, *[few] * 9, *[many] * 11]
    assert Advance.of(Notes(), [one, few, many], [], 0.1) is None, "all vectors are there already"
    assert Advance.of(Notes(), [one, few], owners, 0.1) is None
    notes = Notes()
    followed = Advance.of(notes, [one, few, many], owners, 0.1)
    assert followed is not None
    followed.begin()
    assert notes.told == [{"many": 0}]
    unknown = Advance.of(notes, [one, few, many], owners, float("inf"))
    assert unknown is not None
    unknown.begin()
    assert notes.told[1:] == [{"few": 0, "many": 0}], "how long they take is not known"


def test_notes_are_as_far_apart_as_they_have_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(advance, "time", SimpleNamespace(monotonic=lambda: now))
    many, notes = pending("many", 10), Notes()
    followed = Advance.of(notes, [many], [many] * 8, 1.0)
    assert followed is not None
    followed.begin()
    assert notes.told == [{"many": 2}], "two have their vectors from the store"
    followed.encoded([0])
    now += 0.9
    followed.encoded([1])
    assert notes.told == [{"many": 2}]
    now += 0.1
    followed.encoded([2])
    now += 5
    followed.encoded([])
    assert notes.told == [{"many": 2}, {"many": 5}], "what has not changed is not noted"


@given(calls=st.lists(st.one_of(st.none(), st.sets(st.integers(0, 9))), max_size=20))
def test_it_never_goes_back(calls: list[set[int] | None]) -> None:
    """None: encoding begins again, as after an error that may pass."""
    many, other, notes = pending("many", 7), pending("other", 5), Notes()
    owners = [many, other] * 5
    followed = Advance(notes, [many, other], owners)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(advance, "NOTED_SECONDS", 0.0)
        followed.begin()
        left = set(range(10))
        for positions in calls:
            if positions is None:
                followed.begin()
                left = set(range(10))
            else:
                followed.encoded(sorted(positions & left))
                left -= positions
            assert many.done >= 7 - sum(owners[n] is many for n in left)
    for name, most in (("many", 7), ("other", 5)):
        told = [each[name] for each in notes.told if name in each]
        assert told == sorted(told)
        assert all(0 <= done <= most for done in told)


def test_a_ledger_that_is_away_is_not_the_fault_of_a_model() -> None:
    with pytest.raises(LedgerError), failing_the_request("theirs", own=False):
        raise LedgerError("the database is away")


# ---- runs on a real broker


def test_a_large_batch_among_small_requests(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advance, "NOTED_SECONDS", 0.0)
    seen: list[RequestRow] = []

    def look(texts: Sequence[Any]) -> None:
        if any(text.startswith("large") for text in texts):
            seen.append(installation.ledger()["many"])

    installation.on_encode = look
    installation.send(*[text_request(f"t{n}", f"small {n}") for n in range(10)], partition=0)
    installation.send(batch_request("many", [f"large {n}" for n in range(400)], metadata={"a": 1}), partition=0)
    installation.drain()
    assert {each.state for each in seen} == {RequestState.PROCESSING}
    assert {each.known for each in seen} == {400}
    progress = [each.progress for each in seen]
    assert progress[0] == 0
    assert len(progress) > 1
    assert all(0 < each < 1 for each in progress[1:])
    assert progress == sorted(progress)
    done = installation.ledger()["many"]
    assert (done.progress, done.done, done.known, done.vectors) == (1.0, 400, 400, 400)
    assert (done.task_type, done.metadata) == ("batch_vectorization", {"a": 1})
    assert installation.ledger()["t0"].task_type == "text_vectorization"
    check_finished(installation, stored=410)


def test_small_requests_are_not_followed(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(TopicReport, "advanced", lambda self, requests: told.append(requests))
    installation.send(*[text_request(f"t{n}", f"small {n}") for n in range(300)])
    installation.drain()
    assert told == []
    check_finished(installation, stored=300)


def test_a_replay_tells_nothing_of_what_has_ended(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advance, "NOTED_SECONDS", 0.0)
    installation.send(batch_request("many", [f"large {n}" for n in range(300)]))
    installation.drain()
    states: list[RequestState] = []
    installation.on_encode = lambda texts: states.append(installation.ledger()["many"].state)
    installation.replay(force=True)
    assert set(states) == {RequestState.COMPLETED}
