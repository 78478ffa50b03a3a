"""A check that processes are confined on this machine. Called by `vectorize doctor`."""

from collections.abc import Mapping
from typing import Any

from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.sandbox.frames import Message
from vectorize_pipelines.sandbox.process import ConfinedProcess, Failures, ServiceSpec
from vectorize_pipelines.sandbox.worker import Reserve, Service

_MEMORY_BYTES = 2**30
_SECONDS = 10.0


def missing_confinement() -> Mapping[str, str]:
    """Return what cannot be taken from a process here, with the reason; `process.describe` puts it into words.

    Starts one. Raises `RuntimeError` where none can be started.
    """
    spec = ServiceSpec(f"{__name__}:service", {}, _MEMORY_BYTES, _SECONDS)
    failures = Failures("test", "run", {}, ItemError, ItemError, ItemError)
    process = ConfinedProcess(spec, failures)
    try:
        process.start()
        return process.lacking
    finally:
        process.end()


def service(config: Mapping[str, Any]) -> Service:
    """Return a service that repeats what it is sent."""
    del config

    def answer(message: Message, reserve: Reserve) -> Message:
        del reserve
        return message

    return answer
