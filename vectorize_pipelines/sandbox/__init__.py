"""Processes that read hostile bytes in the place of this one: confined, bounded, replaced when they die.

`ProcessPool` keeps some `ConfinedProcess`es. Each runs a *service*, a function of a module, which answers messages of
JSON and bytes. Used by `documents` for parsers and by `images` for codecs; knows nothing of either.
"""

from vectorize_pipelines.sandbox.budget import ByteBudget
from vectorize_pipelines.sandbox.frames import InvalidAnswerError, Message
from vectorize_pipelines.sandbox.pool import ProcessPool
from vectorize_pipelines.sandbox.process import AnswerLimits, ConfinedProcess, Failures, ServiceSpec, known_errors
from vectorize_pipelines.sandbox.worker import Reserve, Service

__all__ = [
    "AnswerLimits",
    "ByteBudget",
    "ConfinedProcess",
    "Failures",
    "InvalidAnswerError",
    "Message",
    "ProcessPool",
    "Reserve",
    "Service",
    "ServiceSpec",
    "known_errors",
]
