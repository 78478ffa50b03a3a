"""The changes that a source asks of the store, one source document at a time.

Sources make these, `stream` carries them out. `receipt` is the source's own: it comes back through
`acknowledge` once the store holds what the change asked for, and not before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from vectorize_pipelines.core.items import Item
from vectorize_pipelines.core.notices import Notice
from vectorize_pipelines.errors import ItemError

#: The source's own; nobody else looks into it.
Receipt: TypeAlias = object


@dataclass(frozen=True, slots=True)
class Changed:
    """The source holds exactly these items now; rows of others are stale and go after these are written.

    notices  what of the source is not in the items, and what was guessed
    refused  for a source of a single item that the encoder may refuse, as it does an image that cannot be decoded:
             what to acknowledge in place of `receipt` then; what the store holds of an earlier version stays
    """

    source_id: str
    occurred_at: datetime
    items: Sequence[Item]
    receipt: Receipt
    notices: tuple[Notice, ...] = ()
    refused: Callable[[ItemError], Receipt] | None = None


@dataclass(frozen=True, slots=True)
class Touched:
    """The same content under a new time: its rows move to that time's day, with the vectors that they have.

    `notices` are those of when the content was read.
    """

    source_id: str
    occurred_at: datetime
    receipt: Receipt
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Vanished:
    """The source is gone; so are its rows."""

    source_id: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Failed:
    """The source cannot be embedded; what the store holds of an earlier version stays."""

    source_id: str
    occurred_at: datetime
    error: ItemError
    receipt: Receipt


Change: TypeAlias = Changed | Touched | Vanished | Failed
