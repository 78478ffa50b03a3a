"""Which models requests may name, and what it means for a request that the one it names cannot be used.

Whoever may write to a topic names models. So a name counts only where the operator has used it (in the settings, or for
a collection) or has allowed it in `kafka.allowed_models`, and a path only where all of it lies below
`uris.allowed_roots`. A refusal does not depend on what lies on this machine: otherwise it would tell. What is loaded is
what was looked at: a name of the operator's is loaded in the operator's spelling, a path with its links followed.
Called by `targets`, `reader` and `encoding`.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from pathlib import Path

from vectorize_pipelines.encoders.models.names import REMOTE_PREFIX, canonical, may_be_a_folder, of_the_hub, path_in
from vectorize_pipelines.errors import (
    CollectionNotFoundError,
    HubUnavailableError,
    ItemError,
    KeysError,
    LedgerError,
    ProviderUnavailableError,
    StoreError,
    VectorizeError,
)
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.fetching import FetchPolicy, below_roots
from vectorize_pipelines.stores.base import VectorStore, model_slug

logger = logging.getLogger(__name__)

#: In `kafka.allowed_models`: whatever model.
ANY = "*"

#: The store is asked for its collections at most so often.
LISTED_SECONDS = 10.0

#: A folder with a model has some dozens.
MOST_FILES = 1000

#: What a collection's physical name has room for.
LONGEST_SLUG = 150


class UnusableModelError(ItemError):
    """The model that a request names cannot be had, or does not take what the request holds."""


class Spellings:
    """Names that the operator gave to models, found by any other name of the same model.

    A name that a folder stands for has no other: elsewhere it would be the hub's, and anybody may own that one.
    """

    def __init__(self, names: Iterable[str]):
        self._exact = dict.fromkeys(names)
        self._by_model: dict[str, str] = {}
        for name in self._exact:
            if not _is_folder(name):
                self._by_model.setdefault(canonical(name), name)

    def of(self, name: str) -> str | None:
        """The operator's name of the model that `name` stands for; None for a model that the operator did not name.

        Nothing on disk is looked at.
        """
        return name if name in self._exact else self._by_model.get(canonical(name))


class NamedModels:
    """Which models the requests of a run may name. Used by one thread."""

    def __init__(self, settings: Settings, store: VectorStore):
        self._store = store
        self._allowed = settings.kafka.allowed_models
        given = (settings.models.text, settings.models.image, *self._allowed)
        self._given = Spellings(name for name in given if name != ANY)
        self._roots = FetchPolicy.of(settings.uris).allowed_roots
        self._of_collections = Spellings(())
        self._listed = float("-inf")

    def resolve(self, name: str, collection: str | None) -> str:
        """The name by which the model is loaded, for a request that names it, and a collection or None.

        Raises `UnusableModelError` for one that may not be named, and `StoreError`.
        """
        given = self._given.of(name)
        if given is not None:
            return given
        path = path_in(name)
        known = self._of_a_collection(name, collection)
        if known is not None:
            if ANY not in self._allowed:
                return known
            found = known if path is not None else of_the_hub(name)
        else:
            found = self._allowed_name(name, path)
        if max(len(model_slug(name)), len(model_slug(found))) > LONGEST_SLUG:
            raise UnusableModelError(f"model_name: {name[:80]}… is too long for a collection's name")
        return found

    def _allowed_name(self, name: str, path: str | None) -> str:
        if ANY not in self._allowed or name.startswith(REMOTE_PREFIX):  # `*` does not stand for what costs money
            raise UnusableModelError(
                f"model_name: {name} is not among the models that requests may name: those of the settings, of "
                "existing collections, and of kafka.allowed_models (VECTORIZE_KAFKA__ALLOWED_MODELS)"
            )
        if path is None:
            return of_the_hub(name)
        place = self._below_roots(path)
        if place is None:
            raise UnusableModelError(
                f"model_name: {name} is a path, and a path counts only where it and all that it links to lie below "
                "uris.allowed_roots (VECTORIZE_URIS__ALLOWED_ROOTS), and without .. in it"
            )
        return f"{name.removesuffix(path)}{place}"

    def _of_a_collection(self, name: str, collection: str | None) -> str | None:
        """The name of a collection's model that `name` stands for; None where no collection has it."""
        known = self._of_collections.of(name)
        if known is None and collection is not None:
            with suppress(CollectionNotFoundError):
                known = Spellings([self._store.collection(collection).model]).of(name)
        if known is None and time.monotonic() - self._listed > LISTED_SECONDS:
            self._of_collections = Spellings(each.model for each in self._store.collections())
            self._listed = time.monotonic()
            known = self._of_collections.of(name)
        return known

    def _below_roots(self, path: str) -> Path | None:
        """Follow a path with its links; None where that, or what it links to, is not below the roots.

        `..` behind a link means one folder by the text of the path and another one on disk.
        """
        if not Path(path).is_absolute() or not path.isprintable() or ".." in Path(path).parts:
            return None
        try:
            found = below_roots(Path(path), self._roots)
            if found is None:
                return None
            place = found[0].joinpath(*found[1])
            inside = all(below_roots(link, self._roots) is not None for link in _links_in(place))
            return place if inside and str(place).isprintable() else None
        except (OSError, ValueError):  # ValueError: too many files
            return None


def same_model(name: str, other: str) -> bool:
    """Return whether two names that are loaded, of the settings, of a collection or resolved, stand for one model."""
    return Spellings([other]).of(name) is not None and Spellings([name]).of(other) is not None


def _is_folder(name: str) -> bool:
    """Return whether a name of the operator's, which could be the hub's, is that of something that lies here."""
    return may_be_a_folder(name) and path_in(name) is None and os.path.lexists(name)


def _links_in(folder: Path) -> Iterator[Path]:
    """The links in a folder, in the folders in it and in those that it links to, each before it is followed.

    Raises `ValueError` for a folder of many files.
    """
    files = 0
    for parent, folders, names in os.walk(folder, followlinks=True):
        files += len(folders) + len(names)
        if files > MOST_FILES:
            raise ValueError(folder)
        for name in (*folders, *names):
            path = Path(parent, name)
            if path.is_symlink():
                yield path


@contextmanager
def failing_the_request(model: str, *, own: bool) -> Iterator[None]:
    """Turn whatever goes wrong with a model that a request named into `UnusableModelError`: no other one suffers.

    What fails of itself, stores, the ledger, providers that are away, and the end of a run pass. With `own` everything
    does: the model is the settings', and its failure is the run's.
    """
    try:
        yield
    except (ItemError, StoreError, LedgerError, ProviderUnavailableError, KeysError, CancelledError):
        raise
    except BaseException as error:
        # A defect in a library of Rust comes as a panic, which is no `Exception`.
        if own or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        raise unusable(model, error) from error


def unusable(model: str, error: BaseException) -> UnusableModelError:
    """The error of a request whose model fails so."""
    if isinstance(error, VectorizeError):
        return UnusableModelError(f"model_name: {error}")
    logger.warning("the model %s, which a request named, cannot be used", model, exc_info=error)
    reason = " ".join(str(error).split())[:300]
    return UnusableModelError(f"model_name: {model} cannot be loaded: {type(error).__name__}: {reason}")


def may_pass(error: BaseException | None) -> bool:
    """Return whether what became an `UnusableModelError` may be otherwise in a moment: the hub was away."""
    return error is not None and isinstance(error.__cause__, HubUnavailableError)
