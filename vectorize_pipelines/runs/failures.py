"""Errors of this project as ends of a Dagster step: with their message, and retried only where that can help."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from vectorize_pipelines.core.urls import shown_text
from vectorize_pipelines.errors import (
    DamagedStateError,
    ItemError,
    ModelMismatchError,
    SettingsError,
    SourceError,
    UnknownModelError,
    VectorizeError,
)
from vectorize_pipelines.kafka.transactions import FencedError
from vectorize_pipelines.runs.drain import OccupiedTopicError, WoundDownError
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.damage import explain
from vectorize_pipelines.state.held_locks import RunLostError

#: A run that was fenced would fence its successor if it were tried again; one that found its topic occupied has waited;
#: one that lost its own lease cannot write any more, and is taken up by another one. The lease of a table, or of a
#: collection, can be had again.
_FINAL = (
    SettingsError,
    SourceError,
    UnknownModelError,
    ModelMismatchError,
    ItemError,
    DamagedStateError,
    FencedError,
    OccupiedTopicError,
    WoundDownError,
    RunLostError,
)


class _Terminated(dg.DagsterExecutionInterruptedError, dg.DagsterError):
    """The interrupt of a terminated run.

    Under a retry policy Dagster takes its own interrupt for a reason to retry, so that a run could not be
    terminated. An error of the framework it lets pass, and as an interrupt still ends the run as canceled.
    """


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turns a `VectorizeError` into a `dg.Failure`; what the user has to mend is not retried, nor is an interrupt.

    A full or failing disk, and a damaged file, are told as such wherever they were met.
    """
    try:
        yield
    except dg.DagsterExecutionInterruptedError as interrupt:
        raise _Terminated from interrupt
    except VectorizeError as error:
        # Dagster stores what every cause says, and libraries name URLs with all that signs them.
        raise _failure(error) from (error if _may_be_shown(error) else None)
    except (OSError, sqlite3.Error, SQLAlchemyError) as error:
        known = explain(error, load_settings().home)
        if known is None:
            raise
        raise _failure(known) from (error if _may_be_shown(error) else None)


def _failure(error: VectorizeError) -> dg.Failure:
    return dg.Failure(
        description=shown_text(str(error)),
        metadata={"error_class": type(error).__name__, "exit_code": error.exit_code},
        allow_retries=not isinstance(error, _FINAL),
    )


def _may_be_shown(error: BaseException) -> bool:
    """Return whether neither an error nor any that it came from shows more of a URL than `shown_text` would."""
    behind: BaseException | None = error
    while behind is not None:
        if shown_text(str(behind)) != str(behind):
            return False
        behind = behind.__cause__ or (None if behind.__suppress_context__ else behind.__context__)
    return True
