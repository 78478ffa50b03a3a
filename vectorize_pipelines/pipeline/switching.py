"""Begins, switches, rolls back and drops generations. Called by the asset `reembedding` and `vectorize collections`.

Every change is made under the collection's lock, so that no batch is half written while it happens. The alias and what
is known of the generations are two places: whoever comes after a process that died between them puts them right
(`settled`), by what the alias names.
"""

import logging
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np

from vectorize_pipelines import home
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.protocol import EncoderSpec
from vectorize_pipelines.errors import CollectionNotFoundError, SettingsError, StoreError, UnknownModelError
from vectorize_pipelines.generations import Generation, Generations, State, with_state
from vectorize_pipelines.items import Modality
from vectorize_pipelines.pipeline.counterparts import CHUNKER, Lease
from vectorize_pipelines.pipeline.documents import DEFAULT_CHUNK_TOKENS, chunk_limits
from vectorize_pipelines.pipeline.outage import configured_outage
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.stores.filters import Equal
from vectorize_pipelines.stores.protocol import Collection, VectorStore, physical_name

logger = logging.getLogger(__name__)

#: The states of a generation in the making; a collection has one at a time.
MAKING = (State.BUILDING, State.READY)
#: What a model has to encode before a generation is made for it.
TRIAL = "A text, to see whether the model works."


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a collection is to be embedded with.

    Documents keep their passages unless `chunk_tokens` or `overlap_tokens` is given.

    model           empty: that of the generation in the making
    dimension       of the vectors; None: the model's own
    overlap_tokens  of documents that are cut anew; None: as before
    """

    model: str
    dimension: int | None = None
    chunk_tokens: int | None = None
    overlap_tokens: int | None = None

    @property
    def cuts_anew(self) -> bool:
        """Whether documents are to be cut anew."""
        return self.chunk_tokens is not None or self.overlap_tokens is not None


def begin(
    settings: Settings, store: VectorStore, generations: Generations, collection: str, wanted: Wanted, lease: Lease
) -> tuple[Generation, Generation]:
    """The live generation and the new one, made where there is none yet; from then on both get what arrives.

    Raises `CollectionNotFoundError`, `UnknownModelError`, and `SettingsError` for what cannot be: another generation
    of the collection in the making, a model that does not encode what the collection holds, or passages that are too
    long for it. What the model raises when it encodes a text is raised before anything is made: a generation that
    nothing can be written to would stop what arrives, too.
    """
    _check_tenancy(settings)
    standing = store.collection(collection)
    if standing.physical == collection:
        raise SettingsError(f"{collection!r} is a physical collection; name the alias that stands for it")
    # Before the lock is taken: a model may have to be fetched.
    spec = _spec(settings, wanted) if wanted.model else None
    if spec is not None and not any(each.state in MAKING for each in generations.of(collection)):
        configured_outage(settings).wait_out(partial(_check_contents, store, standing, spec))
        _try(lease, spec, wanted)
    with generations.exclusive(collection):
        live = settled(settings, store, generations, collection) or _registered(settings, store, standing)
        making = next((each for each in generations.of(collection) if each.state in MAKING), None)
        if making is not None:
            _check_same(making, spec, wanted)
            return live, making
        if spec is None:
            raise SettingsError(
                f"{collection!r} is not being embedded again; name the model that it is to get, if need be its own"
            )
        limits = _limits(store, live, spec, wanted)
        _check_new(generations, live, spec, limits, wanted)
        new = _made(store, generations, live, spec, limits, cuts_anew=wanted.cuts_anew)
        generations.put(live, new)
    return live, new


def _spec(settings: Settings, wanted: Wanted) -> EncoderSpec:
    return describe_model(wanted.model, dimension=wanted.dimension, cache_directory=home.model_cache(settings))


def _check_contents(store: VectorStore, standing: Collection, spec: EncoderSpec) -> None:
    """Raises `SettingsError` where the collection holds images and the model encodes texts only."""
    images = store.count(standing.physical, Equal("modality", Modality.IMAGE.value))
    if images and Modality.IMAGE not in spec.modalities:
        raise SettingsError(
            f"{standing.name!r} holds {images} images, and {spec.name} encodes texts only: name a model of open_clip"
        )


def _try(lease: Lease, spec: EncoderSpec, wanted: Wanted) -> None:
    """Raises `UnknownModelError` where the model's vectors cannot be stored, and what the model raises."""
    with lease(spec.name, wanted.dimension) as encoder:
        vectors = encoder.encode([TRIAL])
    if vectors.shape != (1, spec.dimension) or not np.isfinite(vectors).all() or not vectors.any():
        raise UnknownModelError(f"{spec.name} does not make a vector of {spec.dimension} numbers of a text: {vectors}")


def _check_same(making: Generation, spec: EncoderSpec | None, wanted: Wanted) -> None:
    """Raises `SettingsError` where something else is in the making; what is not asked for is as it is."""
    asked = (wanted.dimension, wanted.chunk_tokens, wanted.overlap_tokens)
    made = (making.dimension, making.chunk_tokens, making.overlap_tokens)
    other = any(value not in (None, its) for value, its in zip(asked, made, strict=True))
    if other or (spec is not None and making.fingerprint != spec.fingerprint):
        raise SettingsError(
            f"{making.collection!r} is being embedded again with {making.model} in {making.dimension} dimensions, in "
            f"passages of {making.chunk_tokens} tokens with {making.overlap_tokens} of overlap, into "
            f"{making.physical}; switch to it, or drop it first: "
            f"`vectorize collections drop {making.physical}`"
        )


def _check_new(
    generations: Generations, live: Generation, spec: EncoderSpec, limits: tuple[int, int], wanted: Wanted
) -> None:
    """Raises `SettingsError` where a generation like the one that is wanted is there."""
    if live.fingerprint == spec.fingerprint and not wanted.cuts_anew:
        raise SettingsError(f"{live.collection!r} is embedded with {wanted.model} already")
    for each in generations.of(live.collection):
        alike = each.fingerprint == spec.fingerprint and (each.chunk_tokens, each.overlap_tokens) == limits
        if each.state is State.KEPT and alike:
            raise SettingsError(
                f"{each.physical} has that already: `vectorize collections switch {live.collection}` or `rollback` "
                f"turns to it, `vectorize collections drop {each.physical}` makes room for another one"
            )


def settle(settings: Settings, store: VectorStore, collection: str) -> None:
    """Puts right what a process that died while it switched has left, where there is such a thing.

    Called by runs before they look which model a collection has. Raises `StoreError` and `LedgerError`.
    """
    with closing(Generations.open(settings)) as generations:
        live = generations.live(collection)
        try:
            if live is None or live.physical == store.collection(collection).physical:
                return
            with generations.exclusive(collection):  # who is just switching has ended then
                settled(settings, store, generations, collection)
        except CollectionNotFoundError:
            return  # the run makes it anew


def settled(settings: Settings, store: VectorStore, generations: Generations, collection: str) -> Generation | None:
    """The live generation by what the alias names; what was noted otherwise by a process that died is put right."""
    standing = store.collection(collection).physical
    known = generations.of(collection)
    noted = next((each for each in known if each.state is State.LIVE), None)
    named = next((each for each in known if each.physical == standing and each.state is not State.DROPPED), None)
    if named is None or noted is None or named.physical == noted.physical:
        return named
    live = with_state(named, State.LIVE)
    generations.put(live, _kept(settings, noted))
    return live


def switch(
    settings: Settings,
    store: VectorStore,
    generations: Generations,
    collection: str,
    compared: tuple[Generation, Generation] | None = None,
) -> tuple[Generation, Generation]:
    """Turns the alias to the new generation in one step; gives (now live, kept). What to look at before: `comparison`.

    `compared` is the (live, new) that were looked at. Raises `SettingsError` where there is nothing to switch to, or
    where it would be between others than these by now.
    """
    with generations.exclusive(collection):
        live = settled(settings, store, generations, collection)
        new = next_of(generations, collection)
        if compared is not None:
            _check_compared(collection, compared, live, new)
        return _turned(settings, store, generations, live, new)


def _check_compared(
    collection: str, compared: tuple[Generation, Generation], live: Generation | None, new: Generation
) -> None:
    if live is None or [each.identity for each in compared] != [live.identity, new.identity]:
        raise SettingsError(
            f"somebody has switched, dropped or begun a generation of {collection!r} while {compared[1].physical} was "
            f"compared with {compared[0].physical}: nothing is switched; `vectorize collections show {collection}`"
        )


def next_of(generations: Generations, collection: str) -> Generation:
    """What a switch turns to: the generation in the making, else the one that was rolled back last.

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
    """Turns the alias back to what it named before the last switch; gives (now live, kept).

    Nothing is lost: what was written since went to both. Raises `SettingsError` where nothing is kept.
    """
    with generations.exclusive(collection):
        live = settled(settings, store, generations, collection)
        kept = [each for each in generations.of(collection) if each.state is State.KEPT]
        before = [each for each in kept if live is not None and each.created < live.created]
        if not before:
            newer = f"; `vectorize collections switch {collection}` turns to the newer one" if kept else ""
            raise SettingsError(f"no earlier generation of {collection!r} is kept{newer}")
        # Of two that were tried one after the other, the one that was read last.
        return _turned(settings, store, generations, live, max(before, key=lambda each: each.changed))


def drop(settings: Settings, store: VectorStore, generations: Generations, physical: str) -> None:
    """Drops a physical collection; one that is a live generation only if it is the last.

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
    """Drops a generation if it still is to be, as it stands under the lock; says whether it was."""
    physical = known.physical
    with generations.exclusive(known.collection):
        live = _live_or_none(settings, store, generations, known.collection)
        known = next(each for each in generations.of(known.collection) if each.physical == physical)
        if not wanted(known):
            return False
        others = [each for each in generations.written(known.collection) if each.physical != physical]
        if live is not None and live.physical == physical and others:
            raise SettingsError(
                f"{physical} is what {known.collection!r} names; switch, roll back or drop the others first: "
                + ", ".join(each.physical for each in others)
            )
        generations.put(with_state(known, State.DROPPING))  # who dies now leaves word that it is to be deleted
        try:
            store.drop(physical)
        except CollectionNotFoundError:
            logger.info("%s was gone already", physical)
        generations.put(with_state(known, State.DROPPED))
    return True


def drop_expired(settings: Settings, store: VectorStore, generations: Generations) -> list[Generation]:
    """Drops the generations whose time is over, and those that a process began to drop; gives them."""
    now = datetime.now(UTC)

    def is_over(generation: Generation) -> bool:
        until = generation.keep_until
        expired = generation.state is State.KEPT and until is not None and until <= now
        return expired or generation.state is State.DROPPING

    over = [each for each in generations.all() if is_over(each)]
    # A rollback or a switch may have come first.
    return [each for each in over if _drop(settings, store, generations, each, is_over)]


def _turned(
    settings: Settings, store: VectorStore, generations: Generations, live: Generation | None, to: Generation
) -> tuple[Generation, Generation]:
    if live is None:
        raise StoreError(f"what {to.collection!r} names is none of its generations; point it at one of them again")
    store.set_alias(to.collection, to.physical)
    now, before = with_state(to, State.LIVE), _kept(settings, live)
    generations.put(now, before)
    return now, before


def _kept(settings: Settings, generation: Generation) -> Generation:
    return with_state(generation, State.KEPT, datetime.now(UTC) + timedelta(days=settings.reembedding.keep_days))


def _live_or_none(
    settings: Settings, store: VectorStore, generations: Generations, collection: str
) -> Generation | None:
    try:
        return settled(settings, store, generations, collection)
    except CollectionNotFoundError:
        return None


def _registered(settings: Settings, store: VectorStore, standing: Collection) -> Generation:
    """What a collection is that was never embedded again; not noted yet."""
    try:
        cache = home.model_cache(settings)
        spec = describe_model(standing.model, dimension=standing.dimension, cache_directory=cache)
        fingerprint = spec.fingerprint
        longest, overlap = DEFAULT_CHUNK_TOKENS, settings.documents.overlap_tokens
        if _has_documents(store, standing.physical):
            longest, overlap = chunk_limits(settings, spec)
    except UnknownModelError:  # what its rows say of it is enough to leave it
        fingerprint, longest, overlap = _by_its_rows(store, standing.physical, settings)
    now = datetime.now(UTC)
    return Generation(
        collection=standing.name,
        physical=standing.physical,
        state=State.LIVE,
        model=standing.model,
        dimension=standing.dimension,
        fingerprint=fingerprint,
        chunk_tokens=longest,
        overlap_tokens=overlap,
        cut=_new_cut(standing.physical, now),
        created=now,
        changed=now,
    )


def _by_its_rows(store: VectorStore, physical: str, settings: Settings) -> tuple[str, int, int]:
    """Fingerprint of the model, longest passage and overlap, as a row has them."""
    row = next((batch for batch in store.scan(physical, ("model",), batch_rows=1) if batch.num_rows), None)
    fingerprint, _, chunker = ("" if row is None else row.column("model")[0].as_py()).partition(CHUNKER)
    found = re.search(r"max=(\d+) overlap=(\d+)", chunker)
    longest, overlap = found.groups() if found else (DEFAULT_CHUNK_TOKENS, settings.documents.overlap_tokens)
    return fingerprint, int(longest), int(overlap)


def _limits(store: VectorStore, live: Generation, spec: EncoderSpec, wanted: Wanted) -> tuple[int, int]:
    """Longest passage and overlap of the new generation."""
    longest = live.chunk_tokens if wanted.chunk_tokens is None else wanted.chunk_tokens
    overlap = live.overlap_tokens if wanted.overlap_tokens is None else wanted.overlap_tokens
    if not wanted.cuts_anew and not _has_documents(store, live.physical):
        return longest, overlap
    if spec.max_length is not None and longest > spec.max_length:
        raise SettingsError(
            f"passages of up to {longest} tokens do not fit {spec.name}, which takes {spec.max_length}; have the "
            f"documents cut anew: --chunk-tokens {spec.max_length}"
        )
    if overlap * 2 > longest:
        raise SettingsError(f"an overlap of {overlap} tokens is more than half of a passage of {longest}; --overlap")
    return longest, overlap


def _made(
    store: VectorStore,
    generations: Generations,
    live: Generation,
    spec: EncoderSpec,
    limits: tuple[int, int],
    *,
    cuts_anew: bool,
) -> Generation:
    """The new generation with its collection in the store; not noted yet."""
    known = {each.physical for each in generations.all() if each.state is not State.DROPPED}
    there = {each.physical for each in store.collections()}
    edition = 1
    while (name := physical_name(live.collection, spec, edition)) in known or (name in there and store.count(name)):
        edition += 1
    physical = store.ensure_collection(live.collection, spec, aliased=False, edition=edition).physical
    now = datetime.now(UTC)
    return replace(
        live,
        physical=physical,
        state=State.BUILDING,
        model=spec.name,
        dimension=spec.dimension,
        fingerprint=spec.fingerprint,
        chunk_tokens=limits[0],
        overlap_tokens=limits[1],
        cut=_new_cut(physical, now) if cuts_anew else live.cut,
        created=now,
        changed=now,
        keep_until=None,
    )


def _new_cut(physical: str, now: datetime) -> str:
    """A name may be given again once its collection was dropped, a cut is always another one."""
    return f"{physical} {now.isoformat()}"


def _has_documents(store: VectorStore, physical: str) -> bool:
    return store.count(physical, Equal("modality", Modality.DOCUMENT.value)) > 0


def _check_tenancy(settings: Settings) -> None:
    if settings.store.kind == "weaviate" and settings.store.weaviate.tenant is not None:
        raise SettingsError(
            "store.weaviate.tenant is set: an alias of Weaviate is that of all tenants, so a collection with tenants "
            "cannot be embedded again for one of them"
        )
