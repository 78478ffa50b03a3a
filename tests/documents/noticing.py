"""A parser that has to do with notices what the test's documents say, run in the parser processes.

A line `OMITTED what` or `ASSUMED what` becomes a notice, and is no text.
"""

from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from vectorize_pipelines.core.items import content_hash
from vectorize_pipelines.core.notices import Notice, assumed, omitted
from vectorize_pipelines.documents.codec import ParseOutcome
from vectorize_pipelines.documents.parsing import parse
from vectorize_pipelines.documents.worker import Task
from vectorize_pipelines.settings import DocumentSettings

if TYPE_CHECKING:
    import pytest

REMEDY = "mend it"
_KINDS = {"OMITTED": omitted, "ASSUMED": assumed}


def read_with_notices(task: Task, settings: DocumentSettings) -> ParseOutcome:
    """Parse a text as the parsers do, but for the lines that stand for notices."""
    digest = content_hash(bytes(task.content))
    if digest == task.known_hash:
        return ParseOutcome(digest, None)
    notices: list[Notice] = []
    lines: list[str] = []
    for line in bytes(task.content).decode().splitlines():
        kind, _, what = line.partition(" ")
        if kind in _KINDS:
            notices.append(_KINDS[kind](what, REMEDY))
        else:
            lines.append(line)
    document = parse("\n".join(lines).encode(), task.uri, settings)
    return ParseOutcome(digest, replace(document, notices=tuple(notices)))


def use(monkeypatch: "pytest.MonkeyPatch", *modules: ModuleType) -> None:
    """Have these modules, which read documents, parse them so."""
    from vectorize_pipelines.documents.pool import ParserPool

    for module in modules:
        monkeypatch.setattr(module, "ParserPool", partial(ParserPool, handler=read_with_notices))
