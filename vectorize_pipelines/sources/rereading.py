"""Reading of what a stored row was made from: a file that this installation lists itself, or what a request named.

The latter is fetched under the rules of `uris`, as it was the first time: its server may lead elsewhere by now. Called
by `pipeline.generations.rows` and by the checks that encode what rows were made from.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vectorize_pipelines.core.urls import scheme_of
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.content import read_content
from vectorize_pipelines.sources.fetching import OF_BUCKETS, FetchPolicy, MissingContentError, fetch

#: Beside the server's answer: it may well be that the row has all of its URI but what was asked for.
_UNSIGNED = (
    "rows keep no query of a URI, so that one which was signed cannot be asked for again: submit the request again, "
    "with a fresh signature; with uris.keep_query (VECTORIZE_URIS__KEEP_QUERY) rows keep it"
)


def listed_roots(settings: Settings) -> tuple[str, ...]:
    """Return the URLs whose files this installation lists by its settings; a folder of this machine is none."""
    paths = (settings.corpus.path or "", settings.gallery.path or "")
    return tuple(path.rstrip("/") for path in paths if scheme_of(path) not in ("", "file"))


def is_listed_file(row: Mapping[str, Any], roots: Sequence[str] = ()) -> bool:
    """Return whether a row is of a file that this installation lists itself, read without the rules of `uris`.

    What requests name is never called as they are: `pipeline.requests.reader` sees to that. Rows of earlier versions
    may be, so that a URI that names a host counts only below one of `roots` (`listed_roots`).
    """
    uri = row["uri"]
    if not uri or uri != row["source_id"]:
        return False
    scheme = scheme_of(uri)
    return not scheme or scheme in OF_BUCKETS or any(uri == root or uri.startswith(f"{root}/") for root in roots)


class ContentReader:
    """A reader of contents of at most `limit` bytes. Safe for use by several threads."""

    def __init__(self, settings: Settings, limit: int):
        self._policy = FetchPolicy.of(settings.uris)
        self._roots = listed_roots(settings)
        self._limit = limit

    def read(self, row: Mapping[str, Any]) -> bytes:
        """Return the bytes behind a row's `uri`, by now perhaps others. Raises `ItemError`s, which say what to do."""
        uri: str = row["uri"]
        if is_listed_file(row, self._roots):
            return read_content(uri, self._limit + 1)
        try:
            return fetch(uri, self._policy, limit=self._limit)
        except MissingContentError as error:
            if not uri.lower().startswith(("http://", "https://")) or "?" in uri:
                raise
            raise MissingContentError(f"{error}; {_UNSIGNED}") from None
