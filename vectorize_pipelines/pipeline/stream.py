"""`EmbeddingStream`: the reading and encoding threads of a run, which give batches to whoever writes them.

    source ──▶ [thread] read ──▶ [thread] encode ──EmbeddingBatch──▶ `writing.written` (who iterates)

An asset makes an `EmbeddingStream` and hands it to the IO manager as its output. `pipeline.files.stream` has that of
files, `pipeline.requests.stream` that of messages, `pipeline.generations.stream` that of a collection embedded again.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from vectorize_pipelines.encoders.base import EngineChoice
from vectorize_pipelines.pipeline.batch import EmbeddingBatch
from vectorize_pipelines.pipeline.outage import StoreRetry
from vectorize_pipelines.pipeline.totals import Failure, RunNotices, Totals


class EmbeddingStream(ABC):
    """Batches of one run, and running totals of those acknowledged. Iterated once.

    A context manager: leaving it stops the threads and releases what the stream holds (locks, processes, connections),
    whether or not everything was read.

    collection  the collection that the run is for; batches may name further ones
    model       what the run encodes with, as its metadata shows it
    failures    sources that could not be embedded
    notices     what of the others is not embedded, and what was guessed in reading them
    touched     days of which something was written, deleted or refused, by an earlier run that was killed too
    expected    the number of sources, where it is known
    outage      bears with a store that is away; without one such a store fails the run at once
    """

    collection: str
    model: str
    totals: Totals
    failures: list[Failure]
    notices: RunNotices
    touched: set[str]
    expected: int | None = None
    outage: StoreRetry = StoreRetry()

    @abstractmethod
    def __iter__(self) -> Iterator[EmbeddingBatch]:
        """Yield the batches, in the order in which they have to be written. Called once, by `written`."""

    @abstractmethod
    def close(self) -> None:
        """End reading and encoding soon, and release everything. A second call does nothing."""

    @abstractmethod
    def reported(self) -> None:
        """Note that the days in `touched` have been told to the user."""

    @property
    def choice(self) -> EngineChoice | None:
        """The engine that the run encodes with; None where it encoded nothing."""
        return None

    def figures(self) -> Mapping[str, int | float]:
        """Further figures of the run as a whole, for its metadata."""
        return {}

    def other_kinds(self) -> Mapping[str, int]:
        """Return how many files a run over files passed over, by suffix."""
        return {}

    def losses(self) -> Sequence[str]:
        """The places of what the source had lost before it could be read, for people."""
        return ()

    def progress(self) -> str:
        """Describe the run between two batches, beyond the totals; called now and then."""
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
