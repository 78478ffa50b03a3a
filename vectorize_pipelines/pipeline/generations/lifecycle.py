"""Switches, rolls back and drops generations. Called by the asset `reembedding` and `vectorize collections`.

Every change is made under the collection's lock, so that no batch is half written while it happens. The alias is turned
before the table says so (`pipeline.aliases`).
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from vectorize_pipelines.errors import CollectionNotFoundError, SettingsError, StoreError
from vectorize_pipelines.pipeline.aliases import as_kept, reconcile_live
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.generations import Generation, Generations, State, with_state
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.stores.base import VectorStore

logger = logging.getLogger(__name__)

#: The states of a generation in the making; a collection has one at a time.
MAKING = (State.BUILDING, State.READY)


def switch(
    settings: Settings,
    store: VectorStore,
    generations: Generations,
    collection: str,
    compared: tuple[Generation, Generation] | None = None,
) -> tuple[Generation, Generation]:
    """Turn the alias to the new generation in one step; return (now live, kept). What to look at before: `comparison`.

    `compared` is the (live, new) that were looked at. Raises `SettingsError` where there is nothing to switch to, or
    where it would be between others than these by now.
    """
    with generations.exclusive(collection) as lock:
        live = reconcile_live(settings, store, generations, collection, lock)
        new = next_of(generations, collection)
        if compared is not None:
            _check_compared(collection, compared, live, new)
        return _turned(settings, store, generations, live, new, lock)


def _check_compared(
    collection: str, compared: tuple[Generation, Generation], live: Generation | None, new: Generation
) -> None:
    if live is None or [each.identity for each in compared] != [live.identity, new.identity]:
        raise SettingsError(
            f"somebody has switched, dropped or begun a generation of {collection!r} while {compared[1].physical} was "
            f"compared with {compared[0].physical}: nothing is switched; `vectorize collections show {collection}`"
        )


def next_of(generations: Generations, collection: str) -> Generation:
    """Return what a switch turns to: the generation in the making, else the one that was rolled back last.

    Raises `SettingsError` where there is none.
    """
    known = generations.of(collection)
    making = [each for each in known if each.state in MAKING]
    live = next((each for each in known if each.state is State.LIVE), None)
    later = [each for each in known if each.state is State.KEPT and live is not None and each.created > live.created]
    if making:
        return making[-1]
    if later:
        return max(later, key=lambda each: each.changed)
    raise SettingsError(
        f"there is nothing to switch {collection!r} to: `vectorize collections reembed {collection} --model M` makes it"
    )


def rollback(
    settings: Settings, store: VectorStore, generations: Generations, collection: str
) -> tuple[Generation, Generation]:
    """Turn the alias back to what it named before the last switch; return (now live, kept).

    Nothing is lost: what was written since went to both. Raises `SettingsError` where nothing is kept.
    """
    with generations.exclusive(collection) as lock:
        live = reconcile_live(settings, store, generations, collection, lock)
        others = [each for each in generations.of(collection) if each.state is State.KEPT]
        before = [each for each in others if live is not None and each.created < live.created]
        if not before:
            newer = f"; `vectorize collections switch {collection}` turns to the newer one" if others else ""
            raise SettingsError(f"no earlier generation of {collection!r} is kept{newer}")
        # Two may have been tried one after the other: the one that was read last counts.
        return _turned(settings, store, generations, live, max(before, key=lambda each: each.changed), lock)


def drop(settings: Settings, store: VectorStore, generations: Generations, physical: str) -> None:
    """Drop a physical collection; one that is a live generation only if it is the last.

    Raises `CollectionNotFoundError`, and `SettingsError` for a live one beside others.
    """
    known = next((each for each in generations.all() if each.physical == physical), None)
    if known is None or known.state is State.DROPPED:
        store.drop(physical)
    else:
        _drop(settings, store, generations, known, lambda as_it_is: as_it_is.state is not State.DROPPED)


def _drop(
    settings: Settings,
    store: VectorStore,
    generations: Generations,
    known: Generation,
    wanted: Callable[[Generation], bool],
) -> bool:
    """Drop a generation if it still is to be, as it stands under the lock; return whether it was."""
    physical = known.physical
    with generations.exclusive(known.collection) as lock:
        live = _live_or_none(settings, store, generations, known.collection, lock)
        known = next(each for each in generations.of(known.collection) if each.physical == physical)
        if not wanted(known):
            return False
        others = [each for each in generations.written(known.collection) if each.physical != physical]
        if live is not None and live.physical == physical and others:
            raise SettingsError(
                f"{physical} is what {known.collection!r} names; switch, roll back or drop the others first: "
                + ", ".join(each.physical for each in others)
            )
        lock.check()
        generations.put(with_state(known, State.DROPPING))  # who dies now leaves word that it is to be deleted
        lock.check()
        try:
            store.drop(physical)
        except CollectionNotFoundError:
            logger.info("%s was gone already", physical)
        generations.put(with_state(known, State.DROPPED))
    return True


def drop_expired(settings: Settings, store: VectorStore, generations: Generations) -> list[Generation]:
    """Drop the generations whose time is over, and those that a process began to drop; return them."""
    now = datetime.now(UTC)

    def is_over(generation: Generation) -> bool:
        until = generation.keep_until
        expired = generation.state is State.KEPT and until is not None and until <= now
        return expired or generation.state is State.DROPPING

    over = [each for each in generations.all() if is_over(each)]
    # A rollback or a switch may have come first.
    return [each for each in over if _drop(settings, store, generations, each, is_over)]


def _turned(
    settings: Settings,
    store: VectorStore,
    generations: Generations,
    live: Generation | None,
    to: Generation,
    lock: ExclusiveLock,
) -> tuple[Generation, Generation]:
    if live is None:
        raise StoreError(f"what {to.collection!r} names is none of its generations; point it at one of them again")
    lock.check()
    store.set_alias(to.collection, to.physical)
    now, before = with_state(to, State.LIVE), as_kept(settings, live)
    generations.put(now, before)
    return now, before


def _live_or_none(
    settings: Settings, store: VectorStore, generations: Generations, collection: str, lock: ExclusiveLock
) -> Generation | None:
    try:
        return reconcile_live(settings, store, generations, collection, lock)
    except CollectionNotFoundError:
        return None
