"""The generations of a collection: the physical collections that stand, or stood, behind one alias, and their states.

A collection that is embedded again has several. Every process that writes asks here which of them there are, so that
what arrives goes to all (`pipeline.generations.writer`), and which model and cut the collection has now. A collection
that was never embedded again has no entry: the settings say all there is to say. The table lies in the database that
Dagster uses, which all machines of an installation share.

    building ──▶ ready ──▶ live ──▶ kept ──▶ dropping ──▶ dropped
                  switch ──┘  ▲──────┘ rollback
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self, TypeAlias
from urllib.parse import quote

from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import home

if TYPE_CHECKING:
    from vectorize_pipelines.state.database import Database
    from vectorize_pipelines.state.held_locks import ExclusiveLock


class State(StrEnum):
    """The use of a generation.

    building  being filled; what arrives goes to it, too
    ready     filled and found equal to the live one; may be switched to
    live      what the alias names
    kept      was live; still gets what arrives, so that a rollback loses nothing
    dropping  gets nothing any more; is being deleted
    dropped   gone
    """

    BUILDING = "building"
    READY = "ready"
    LIVE = "live"
    KEPT = "kept"
    DROPPING = "dropping"
    DROPPED = "dropped"


#: The states of generations that get what arrives.
WRITTEN = (State.BUILDING, State.READY, State.LIVE, State.KEPT)


#: Physical name, and when it was made, since a name is given again once its collection was dropped.
Identity: TypeAlias = tuple[str, datetime]


@dataclass(frozen=True, slots=True)
class Generation:
    """One physical collection of an alias.

    model, dimension  as given to `load_encoder`
    fingerprint       of the model, as the rows carry it
    chunk_tokens      longest passage of a document, in tokens
    overlap_tokens    tokens repeated from one passage to the next
    cut               names the passages that it has: generations of one cut have the same rows
    created, changed  when it was made, and when its state changed last
    keep_until        when a kept one is dropped
    """

    collection: str
    physical: str
    state: State
    model: str
    dimension: int
    fingerprint: str
    chunk_tokens: int
    overlap_tokens: int
    cut: str
    created: datetime
    changed: datetime
    keep_until: datetime | None = None

    @property
    def identity(self) -> Identity:
        """The name that tells it from every other one."""
        return self.physical, self.created


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """The model and the cut that a collection is embedded with now.

    dimension  None: the model's own
    limits     longest passage of a document and overlap, in tokens; None: as the settings say
    equivalent_fingerprints  of the models of other generations: what was embedded with them is up to date here, too
    """

    model: str
    dimension: int | None = None
    limits: tuple[int, int] | None = None
    equivalent_fingerprints: frozenset[str] = frozenset()


def resolve_embedding_config(
    settings: Settings, collection: str, given: str, default: EmbeddingConfig
) -> EmbeddingConfig:
    """Return what a run embeds a collection with, whose config names the model `given`, or none (empty).

    A collection that was embedded again, or is being so, keeps what its live generation has, whatever the settings say:
    they are for new collections. Raises `LedgerError`.
    """
    with closing(Generations.open(settings)) as generations:
        all_of_it = generations.of(collection)
    live = next((each for each in all_of_it if each.state is State.LIVE), None)
    if live is None or given not in ("", live.model):
        return replace(default, model=given) if given else default
    return EmbeddingConfig(
        model=live.model,
        dimension=live.dimension,
        limits=(live.chunk_tokens, live.overlap_tokens),
        equivalent_fingerprints=frozenset(each.fingerprint for each in all_of_it if each.cut == live.cut),
    )


class Generations:
    """The generations of one store's collections. Safe for use by several threads. Methods may raise `LedgerError`."""

    def __init__(self, database: "Database", settings: Settings):
        self._database = database
        self._settings = settings
        # Not by location: machines may know one server by different addresses, and a missing entry would lose rows.
        self._store = settings.store.kind

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the generations of an installation. Raises `SettingsError` and `LedgerError`."""
        from vectorize_pipelines.state.database import Database

        return cls(Database.open(settings), settings)

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._database.close()

    def of(self, collection: str) -> list[Generation]:
        """Return every generation that a collection has or had, the oldest first."""
        from vectorize_pipelines.state.generations_table import generations

        query = generations.select().where(generations.c.store == self._store, generations.c.collection == collection)
        with self._database.read() as connection:
            found = [_generation(row) for row in connection.execute(query).mappings()]
        return sorted(found, key=lambda each: (each.created, each.physical))

    def written(self, collection: str) -> list[Generation]:
        """Return those that get what arrives, the live one last; none where nothing was ever embedded again."""
        found = [each for each in self.of(collection) if each.state in WRITTEN]
        return sorted(found, key=lambda each: each.state is State.LIVE)

    def live(self, collection: str) -> Generation | None:
        """Return the one that the alias names; None for a collection that was never embedded again."""
        return next((each for each in self.of(collection) if each.state is State.LIVE), None)

    def all(self) -> list[Generation]:
        """Return every generation of every collection."""
        from vectorize_pipelines.state.generations_table import generations

        query = generations.select().where(generations.c.store == self._store)
        with self._database.read() as connection:
            return [_generation(row) for row in connection.execute(query).mappings()]

    def get(self, physical: str) -> Generation:
        """Return the one with this physical name. Raises `CollectionNotFoundError`."""
        for each in self.all():
            if each.physical == physical and each.state is not State.DROPPED:
                return each
        raise CollectionNotFoundError(
            f"{physical!r} is not known as a generation of any collection; `vectorize collections show NAME` lists them"
        )

    def put(self, *changed: Generation) -> None:
        """Add generations, or replace what was known of them: all or nothing."""
        from vectorize_pipelines.state.generations_table import generations

        upsert = self._database.upsert(generations, lambda new, old: new.physical == old.physical)
        with self._database.write() as connection:
            connection.execute(upsert, [{"store": self._store, **_values(each)} for each in changed])

    def exclusive(self, collection: str) -> "AbstractContextManager[ExclusiveLock]":
        """Return the lock for writing a batch to several generations, or for changing which there are."""
        from vectorize_pipelines.state.locks import exclusive

        file = home.generations_lock(self._settings, quote(collection, safe=""))
        name = f"generations/{self._store}/{collection}"
        return exclusive(self._database, name, file, f"the generations of {collection}")


def with_state(generation: Generation, state: State, keep_until: datetime | None = None) -> Generation:
    """Return the same generation in another state, from now on."""
    return replace(generation, state=state, changed=datetime.now(UTC), keep_until=keep_until)


def _values(generation: Generation) -> dict[str, Any]:
    keep_until = generation.keep_until
    return {
        "collection": generation.collection,
        "physical": generation.physical,
        "state": generation.state.value,
        "model": generation.model,
        "dimension": generation.dimension,
        "fingerprint": generation.fingerprint,
        "chunk_tokens": generation.chunk_tokens,
        "overlap_tokens": generation.overlap_tokens,
        "cut": generation.cut,
        "created": generation.created.isoformat(),
        "changed": generation.changed.isoformat(),
        "keep_until": None if keep_until is None else keep_until.isoformat(),
    }


def _generation(row: Mapping[Any, Any]) -> Generation:
    values = {name: value for name, value in row.items() if name != "store"}
    times = {
        name: datetime.fromisoformat(values[name])
        for name in ("created", "changed", "keep_until")
        if values[name] is not None
    }
    return Generation(**{**values, **times, "state": State(values["state"])})
