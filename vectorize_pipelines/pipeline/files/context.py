"""The work of a run over the files of a folder, and what the parts of the run share."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import date
from typing import Literal

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.pipeline.spill import SpillingRetry
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.stores.base import VectorStore


@dataclass(frozen=True, slots=True)
class FolderRequest:
    """The work that one run is asked to do.

    collection  the alias of the collection that is brought up to date
    model       the name of the model that it is embedded with
    mode        `drain`: whatever differs from the manifest; `replay`: what lies in the window
    window      first and last day of the run's partitions, both included
    force       encode also what has not changed
    reconcile   hold the manifest against the store before trusting it
    """

    collection: str
    model: str
    mode: Literal["drain", "replay"]
    window: tuple[date, date]
    run_id: str
    force: bool = False
    reconcile: bool = False


@dataclass(frozen=True)
class FolderRun:
    """One run over the files of one folder. Made by `folder.open_folder`; nobody changes it.

    physical       the collection behind the alias whose vectors are of the run's model, also when the alias is switched
    model          fingerprint of model and way of cutting, as it is written into the records
    days           the days that items may belong to
    outage         how a store that is away is waited for
    lock           of the collection's rows that come from files, held until the stream is closed
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
