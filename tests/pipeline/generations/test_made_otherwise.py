"""A generation in the making is switched to, asked for otherwise, or loses its store, while it is being filled."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.generations.two_models import COLLECTION, NEW, OLD, Writers, installed
from vectorize_pipelines.errors import SettingsError, StoreUnavailableError
from vectorize_pipelines.pipeline import outage
from vectorize_pipelines.pipeline.generations import lifecycle as switching
from vectorize_pipelines.pipeline.generations.begin import Wanted
from vectorize_pipelines.pipeline.generations.stream import ReembeddingStream, open_reembedding
from vectorize_pipelines.pipeline.writing import written
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL
from vectorize_pipelines.state.generations import State

TEXTS = {f"s{n}": f"text number {n}" for n in range(7)}


@pytest.fixture
def writers(tmp_path: Path) -> Writers:
    writers = installed(tmp_path / "installation")
    writers.write(TEXTS)
    return writers


def opened(writers: Writers, wanted: Wanted) -> ReembeddingStream:
    return open_reembedding(writers.settings, writers.store, COLLECTION, wanted, None, "again", writers.lease)


def test_a_run_that_outlives_the_switch_leaves_the_new_generation_live(writers: Writers) -> None:
    with (
        opened(writers, Wanted(DEFAULT_TEXT_MODEL, NEW)) as stream,
        closing(writers.mirrors()) as mirrors,
        closing(writers.generations()) as generations,
    ):
        for batch in written(mirrors, stream):
            if batch.records.num_rows:
                switching.switch(writers.settings, writers.store, generations, COLLECTION)
        states = {each.dimension: each.state for each in generations.of(COLLECTION)}
    assert states == {OLD: State.KEPT, NEW: State.LIVE}


@pytest.mark.parametrize(
    "otherwise",
    [Wanted("", chunk_tokens=40), Wanted("", overlap_tokens=7), Wanted("", dimension=17), Wanted("", OLD)],
)
def test_what_is_in_the_making_is_not_asked_for_otherwise(writers: Writers, otherwise: Wanted) -> None:
    writers.reembed()
    with pytest.raises(SettingsError, match="is being embedded again"):
        opened(writers, otherwise)


def test_what_is_in_the_making_goes_on_with_what_it_was_made_of(writers: Writers) -> None:
    writers.reembed([], chunk_tokens=64, overlap_tokens=8)
    for same in (Wanted(""), Wanted("", NEW, 64), Wanted(DEFAULT_TEXT_MODEL, NEW), Wanted("", overlap_tokens=8)):
        opened(writers, same).close()


@pytest.mark.parametrize("method", ["upsert", "fetch", "scan", "count_by"])
def test_a_store_that_is_away_for_a_while_is_waited_for_and_nothing_is_encoded_twice(
    writers: Writers, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    really, failures = getattr(writers.store, method), [StoreUnavailableError("the store is away")] * 2
    monkeypatch.setattr(outage, "FIRST_PAUSE_SECONDS", 0.001)

    def away_twice(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return really(*arguments)

    monkeypatch.setattr(writers.store, method, away_twice)
    assert writers.reembed().totals.sum().encoded == len(TEXTS)
    assert not failures, "the store was never away"
    assert sorted(writers.encoders[NEW].asked) == sorted(TEXTS.values())
    assert writers.texts(writers.physical(NEW)) == TEXTS
