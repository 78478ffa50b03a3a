"""How this project's errors end a Dagster step: with their message, and retried only where that can help."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from vectorize_pipelines.drain_runs import OccupiedTopicError, WoundDownError
from vectorize_pipelines.errors import (
    ItemError,
    ModelMismatchError,
    SettingsError,
    SourceError,
    UnknownModelError,
    VectorizeError,
)
from vectorize_pipelines.messaging.outcomes import FencedError

#: A run that was fenced would fence its successor if it were tried again; one that found its topic occupied has waited.
_FINAL = (
    SettingsError,
    SourceError,
    UnknownModelError,
    ModelMismatchError,
    ItemError,
    FencedError,
    OccupiedTopicError,
    WoundDownError,
)


class _Terminated(dg.DagsterExecutionInterruptedError, dg.DagsterError):
    """The interrupt of a terminated run.

    Under a retry policy Dagster takes its own interrupt for a reason to retry, so that a run could not be
    terminated. An error of the framework it lets pass, and as an interrupt still ends the run as canceled.
    """


@contextmanager
def explained() -> Iterator[None]:
    """Turns a `VectorizeError` into a `dg.Failure`; what the user has to mend is not retried, nor is an interrupt."""
    try:
        yield
    except dg.DagsterExecutionInterruptedError as interrupt:
        raise _Terminated from interrupt
    except VectorizeError as error:
        raise dg.Failure(
            description=str(error),
            metadata={"error_class": type(error).__name__, "exit_code": error.exit_code},
            allow_retries=not isinstance(error, _FINAL),
        ) from error
