"""The work of a run over the files of a folder, and what the parts of the run share."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import date
from typing import Literal

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.pipeline.spill import SpillingRetry
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.stores.base import VectorStore

FILES_WRITER = "files"


@dataclass(frozen=True, slots=True)
class FolderRequest:
    """The work that one run is asked to do.

    collection  the alias of the collection that is brought up to date
    model       the name of the model that it is embedded with
    mode        `drain`: whatever differs from the manifest; `replay`: what lies in the window
    window      first and last day of the run's partitions, both included
    force       encode also what has not changed
    reconcile   hold the manifest against the store before trusting it
    compare_contents  hold it against the contents of all files, too: each is read
    allow_empty  whether a folder that holds nothing any more has its rows deleted; else the run is refused
    shard       the part of the folder that the run owns
    """

    collection: str
    model: str
    mode: Literal["drain", "replay"]
    window: tuple[date, date]
    run_id: str
    force: bool = False
    reconcile: bool = False
    compare_contents: bool = False
    allow_empty: bool = False
    shard: Shard = WHOLE

    @property
    def writer(self) -> str:
        """The name of those who write the same rows, one after another, as the journal of writes knows them."""
        return FILES_WRITER if self.shard.is_whole else f"{FILES_WRITER} {self.shard}"

    def wrote(self, writer: str) -> bool:
        """Return whether a writer was a run over what this one owns, or over some of it, which has ended."""
        name, _, shard = writer.partition(" ")
        return name == FILES_WRITER and self.shard.overlaps(Shard.parse(shard) if shard else WHOLE)


@dataclass(frozen=True)
class FolderRun:
    """One run over the files of one folder. Made by `folder.open_folder`; nobody changes it.

    physical       the collection behind the alias whose vectors are of the run's model, also when the alias is switched
    model          fingerprint of model and way of cutting, as it is written into the records
    days           the days that items may belong to
    outage         how a store that is away is waited for
    lock           of what the run owns of the collection's rows from files, held until the stream is closed
    force_sources  sources whose items are encoded again, also without `request.force`
    """

    settings: Settings
    store: VectorStore
    request: FolderRequest
    physical: str
    model: str
    days: Days
    outage: SpillingRetry
    lock: ExclusiveLock
    force_sources: AbstractSet[str] = frozenset()

    @property
    def collection(self) -> str:
        """The alias of the collection, by which ids are made."""
        return self.request.collection

    def encodes_again(self, source_id: str) -> bool:
        """Return whether a source's items are encoded whatever the store has of them."""
        return self.request.force or source_id in self.force_sources
