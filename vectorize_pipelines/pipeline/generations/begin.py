"""Begins generations: says what a new one is to be, checks that it can be, and makes its collection.

Called by the stream of a reembedding run.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import numpy as np

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.documents.cutting import DEFAULT_CHUNK_TOKENS, chunk_limits
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.encoders.configured import describe_options
from vectorize_pipelines.errors import SettingsError, UnknownModelError
from vectorize_pipelines.pipeline.aliases import reconcile_live
from vectorize_pipelines.pipeline.encoding import LeaseEncoder
from vectorize_pipelines.pipeline.generations.lifecycle import MAKING
from vectorize_pipelines.pipeline.generations.rows import CHUNKER
from vectorize_pipelines.pipeline.spill import configured_outage
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.generations import Generation, Generations, State
from vectorize_pipelines.stores.base import Collection, VectorStore, physical_name
from vectorize_pipelines.stores.filters.expressions import Equal

#: What a model has to encode before a generation is made for it.
TRIAL = "A text, to see whether the model works."


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model and the passages that a collection is to be embedded with.

    Documents keep their passages unless `chunk_tokens` or `overlap_tokens` is given.

    model           empty: that of the generation in the making
    dimension       of the vectors; None: the model's own
    overlap_tokens  of documents that are cut again; None: as before
    """

    model: str
    dimension: int | None = None
    chunk_tokens: int | None = None
    overlap_tokens: int | None = None

    @property
    def cuts_again(self) -> bool:
        """Whether documents are to be cut again."""
        return self.chunk_tokens is not None or self.overlap_tokens is not None


def begin(
    settings: Settings,
    store: VectorStore,
    generations: Generations,
    collection: str,
    wanted: Wanted,
    lease_encoder: LeaseEncoder,
) -> tuple[Generation, Generation]:
    """Return the live generation and the new one, made where there is none yet; from then on both get what arrives.

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
        configured_outage(settings).call(partial(_check_contents, store, standing, spec))
        _try(lease_encoder, spec, wanted)
    with generations.exclusive(collection) as lock:
        live = reconcile_live(settings, store, generations, collection, lock) or _registered(settings, store, standing)
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
        lock.check()
        new = _made(store, generations, live, spec, limits, cuts_again=wanted.cuts_again)
        lock.check()
        generations.put(live, new)
    return live, new


def _spec(settings: Settings, wanted: Wanted) -> EncoderSpec:
    return describe_model(wanted.model, dimension=wanted.dimension, **describe_options(settings))


def _check_contents(store: VectorStore, standing: Collection, spec: EncoderSpec) -> None:
    """Raises `SettingsError` where the collection holds images and the model encodes texts only."""
    images = store.count(standing.physical, Equal("modality", Modality.IMAGE.value))
    if images and Modality.IMAGE not in spec.modalities:
        raise SettingsError(
            f"{standing.name!r} holds {images} images, and {spec.name} encodes texts only: name a model of open_clip"
        )


def _try(lease_encoder: LeaseEncoder, spec: EncoderSpec, wanted: Wanted) -> None:
    """Raises `UnknownModelError` where the model's vectors cannot be stored, and what the model raises."""
    with lease_encoder(spec.name, wanted.dimension) as encoder:
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
    if live.fingerprint == spec.fingerprint and not wanted.cuts_again:
        raise SettingsError(f"{live.collection!r} is embedded with {wanted.model} already")
    for each in generations.of(live.collection):
        alike = each.fingerprint == spec.fingerprint and (each.chunk_tokens, each.overlap_tokens) == limits
        if each.state is State.KEPT and alike:
            raise SettingsError(
                f"{each.physical} has that already: `vectorize collections switch {live.collection}` or `rollback` "
                f"turns to it, `vectorize collections drop {each.physical}` makes room for another one"
            )


def _registered(settings: Settings, store: VectorStore, standing: Collection) -> Generation:
    """Return the generation that a collection is which was never embedded again; not noted yet."""
    try:
        spec = describe_model(standing.model, dimension=standing.dimension, **describe_options(settings))
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
    if not wanted.cuts_again and not _has_documents(store, live.physical):
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
    cuts_again: bool,
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
        cut=_new_cut(physical, now) if cuts_again else live.cut,
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
