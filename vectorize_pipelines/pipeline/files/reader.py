"""The protocol of whoever reads the files of a folder as items."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from vectorize_pipelines.core.items import Item
from vectorize_pipelines.core.notices import Notice
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.sources.files import SourceFile


@dataclass(frozen=True, slots=True)
class Reading:
    """The content of a file; `items` is None where it is the one that was known.

    `notices`: what of the file is not in the items, and what was guessed.
    """

    content_hash: str
    items: Sequence[Item] | None
    notices: tuple[Notice, ...] = ()


class FileReader(Protocol):
    """Reads the files of a folder as items of one model. A context manager, entered before anything is read.

    spec                     the model
    model                    fingerprint of model and way of cutting, as it is written into the records
    fingerprint              `model` and every setting that decides what is read out of a file
    equivalent_fingerprints  further fingerprints: what was read under them is up to date under `fingerprint`
    limits                   the settings by which a file may be refused
    may_refuse               whether a file is a single item, which the encoder may refuse when it looks at its content
    """

    spec: EncoderSpec
    model: str
    fingerprint: str
    equivalent_fingerprints: frozenset[str]
    limits: str
    may_refuse: bool

    def read(self, files: Iterable[tuple[SourceFile, str | None]]) -> Iterator[tuple[SourceFile, Reading | ItemError]]:
        """Read (file, known content hash) in order, some way ahead. Called in the reading thread.

        Called again once everything has been read.
        """

    def close(self) -> None:
        """Make a reading in progress end soon. Called from another thread; a second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...
