"""The alias of a collection and what is known of its generations, kept in agreement.

The two are kept in two places, so that a process which dies while it switches may leave them different. Whoever comes
next puts them right, by what the alias names: runs by `current_embedding_config` before they embed, and those who
change generations by `reconcile_live`, under the lock of the collection.
"""

import logging
from contextlib import closing
from datetime import UTC, datetime, timedelta

from vectorize_pipelines.errors import CollectionNotFoundError, DamagedCollectionError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.generations import (
    EmbeddingConfig,
    Generation,
    Generations,
    State,
    resolve_embedding_config,
    with_state,
)
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.stores.base import VectorStore

logger = logging.getLogger(__name__)


def current_embedding_config(
    settings: Settings, store: VectorStore, collection: str, given: str, default: EmbeddingConfig
) -> EmbeddingConfig:
    """Return what a run embeds a collection with, once what a switch that died has left is put right.

    `given` is the model that the run's config names, or empty; see `resolve_embedding_config`. Raises `StoreError` and
    `LedgerError`.
    """
    repair_alias(settings, store, collection)
    return resolve_embedding_config(settings, collection, given, default)


def repair_alias(settings: Settings, store: VectorStore, collection: str) -> None:
    """Put right what a process that died while it switched has left, where there is such a thing.

    Raises `StoreError` and `LedgerError`.
    """
    with closing(Generations.open(settings)) as generations:
        live = generations.live(collection)
        try:
            if live is None or live.physical == store.collection(collection).physical:
                return
            with generations.exclusive(collection) as lock:  # who is just switching has ended then
                reconcile_live(settings, store, generations, collection, lock)
        except CollectionNotFoundError:
            _name_again(store, generations, collection)


def _name_again(store: VectorStore, generations: Generations, collection: str) -> None:
    """Have a lost alias name the live generation; where that is gone, too, the run makes it anew."""
    with generations.exclusive(collection) as lock:
        live = generations.live(collection)
        if live is None or live.physical not in {each.physical for each in store.collections()}:
            return
        try:
            store.collection(collection)
        except CollectionNotFoundError:
            logger.warning("the alias %s was lost; it names %s again", collection, live.physical)
            lock.check()
            store.set_alias(collection, live.physical)


def reconcile_live(
    settings: Settings, store: VectorStore, generations: Generations, collection: str, lock: ExclusiveLock
) -> Generation | None:
    """Return the live generation by what the alias names; put right what a process that died has noted otherwise.

    To be called under the lock of the collection's generations.
    """
    known = generations.of(collection)
    noted = next((each for each in known if each.state is State.LIVE), None)
    try:
        standing = store.collection(collection).physical
    except DamagedCollectionError:
        if noted is None:
            raise
        return noted  # so that it can be rolled back, or dropped
    named = next((each for each in known if each.physical == standing and each.state is not State.DROPPED), None)
    if named is None or noted is None or named.physical == noted.physical:
        return named
    live = with_state(named, State.LIVE)
    lock.check()
    generations.put(live, as_kept(settings, noted))
    return live


def as_kept(settings: Settings, generation: Generation) -> Generation:
    """Return a generation that was live as one that is kept, for as long as the settings say."""
    return with_state(generation, State.KEPT, datetime.now(UTC) + timedelta(days=settings.reembedding.keep_days))
