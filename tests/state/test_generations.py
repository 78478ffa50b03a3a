"""What is known of a collection's generations, in SQLite and in PostgreSQL, and a whole change of model on both."""

from contextlib import closing
from datetime import UTC, datetime, timedelta

from tests.pipeline.generations.two_models import COLLECTION, NEW, OLD, Writers
from vectorize_pipelines.pipeline.generations import lifecycle as switching
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.generations import (
    EmbeddingConfig,
    Generation,
    Generations,
    State,
    resolve_embedding_config,
    with_state,
)
from vectorize_pipelines.stores import open_store

MADE = datetime(2024, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def generation(physical: str, state: State, minutes: int = 0, collection: str = COLLECTION) -> Generation:
    made = MADE + timedelta(minutes=minutes)
    return Generation(collection, physical, state, "a model", 4, f"print of {physical}", 256, 32, "cut", made, made)


def test_what_was_noted_comes_back_in_every_process(installation: Settings) -> None:
    live, kept = generation("new", State.LIVE, 1), generation("old", State.KEPT)
    with closing(Generations.open(installation)) as generations:
        generations.put(live, kept, generation("other", State.LIVE, collection="others"))
        assert generations.written("nothing") == []
    with closing(Generations.open(installation)) as generations:
        assert generations.of(COLLECTION) == [kept, live]
        assert generations.written(COLLECTION) == [kept, live], "the live one comes last"
        until = datetime.now(UTC) + timedelta(days=7)
        generations.put(with_state(kept, State.LIVE), with_state(live, State.KEPT, until))
        assert [(each.physical, each.state) for each in generations.written(COLLECTION)] == [
            ("new", State.KEPT),
            ("old", State.LIVE),
        ]
        assert generations.get("new").keep_until == until
        generations.put(with_state(generations.get("new"), State.DROPPED))
        assert [each.physical for each in generations.written(COLLECTION)] == ["old"]


def test_the_settings_are_for_collections_that_were_never_embedded_again(installation: Settings) -> None:
    default = EmbeddingConfig("of the settings", 8)
    assert resolve_embedding_config(installation, COLLECTION, "", default) == default
    assert resolve_embedding_config(installation, COLLECTION, "given", default) == EmbeddingConfig("given", 8)
    with closing(Generations.open(installation)) as generations:
        generations.put(generation("new", State.LIVE, 1), generation("old", State.DROPPED))
    now = EmbeddingConfig("a model", 4, (256, 32), frozenset({"print of old", "print of new"}))
    assert resolve_embedding_config(installation, COLLECTION, "", default) == now
    assert resolve_embedding_config(installation, COLLECTION, "a model", default) == now
    assert resolve_embedding_config(installation, COLLECTION, "given", default) == EmbeddingConfig("given", 8), (
        "the store refuses it"
    )


def test_a_change_of_model(installation: Settings) -> None:
    writers = Writers(installation, open_store(installation.store, installation.home))
    writers.begin()
    texts = {f"s{n}": f"text {n}" for n in range(5)}
    writers.write(texts)
    writers.reembed()
    writers.write({"s1": "changed"})
    with closing(writers.generations()) as generations:
        switching.switch(writers.settings, writers.store, generations, COLLECTION)
        writers.write({"s2": "changed, too"}, dimension=NEW)
        switching.rollback(writers.settings, writers.store, generations, COLLECTION)
    expected = {**texts, "s1": "changed", "s2": "changed, too"}
    assert writers.texts() == writers.texts(writers.physical(NEW)) == writers.texts(writers.physical(OLD)) == expected
