"""The context of a run over messages, which its parts share. Made by what opens a stream; nobody changes it."""

from dataclasses import dataclass

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.pipeline.encoding import LeaseEncoder
from vectorize_pipelines.pipeline.spill import SpillingRetry
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.versions import SourceVersions
from vectorize_pipelines.stores.base import VectorStore


@dataclass(frozen=True)
class RunContext:
    """One run over messages. Whoever makes it closes what it holds.

    versions   what earlier messages wrote or deleted
    outage     how a store that is away is waited for
    force      whether content is encoded that the store has already
    """

    settings: Settings
    modality: Modality
    run_id: str
    store: VectorStore
    versions: SourceVersions
    lease_encoder: LeaseEncoder
    outage: SpillingRetry
    force: bool = False
