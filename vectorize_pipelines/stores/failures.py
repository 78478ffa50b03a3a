"""Failures of a store in words that a user can act on, without secrets. Called by every store of this package."""

from vectorize_pipelines.core.urls import shown_text, without_secrets
from vectorize_pipelines.errors import CollectionNotFoundError

# A client's message may hold a whole batch.
_LONGEST = 2_000


def failure_text(doing: str, place: str, state: str, advice: str, reason: str, secret: str | None = None) -> str:
    """Return what failed and where; what has become of the data, what to do and why, where there is something to say.

    The secret, if any, is taken out of the reason, and so is what URLs in it do not show.
    """
    shown = without_secrets(shown_text(reason), secret)
    return "; ".join(part for part in (f"{doing} failed in {place}", state, advice, shown) if part)[:_LONGEST]


def no_such_collection(name: str, place: str, known: set[str]) -> CollectionNotFoundError:
    """Return the error for a name that is none of these."""
    there = ", ".join(sorted(known)) or "none"
    return CollectionNotFoundError(f"there is no collection or alias {name!r} in {place}; there are: {there}")
