"""The benchmark `parsing`: how fast documents become text, against the fastest other library that gives the same text.

Both in this process, in turn, on the same documents. A library counts as giving the same text where it has the words;
what the product finds beside them (sections, pages, metadata, its language) costs what it costs.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.passages import passages
from tests.documents import builders, packages
from vectorize_pipelines.documents import parse
from vectorize_pipelines.settings import DocumentSettings

ROUNDS = 5
DOCUMENTS = 40
PASSAGES = 40
WORDS = 110
#: Of the other library's speed.
LEAST_SHARE = {"pdf": 0.4, "docx": 0.8, "pptx": 0.8, "html": 0.3, "csv": 0.1, "json-lines": 0.5, "xlsx": 0.5, "text": 0.0}

Reader = Callable[[bytes], str]


@dataclass(frozen=True)
class Compared:
    """A format, how a document of some texts is made in it, and who else reads it."""

    suffix: str
    make: Callable[[Sequence[str]], bytes]
    other: str
    read: Reader


def run(place: Path) -> list[Figure]:
    """Measure each format."""
    del place
    texts = passages(DOCUMENTS * PASSAGES, WORDS)
    groups = [texts[start : start + PASSAGES] for start in range(0, len(texts), PASSAGES)]
    return [_figure(compared, [compared.make(group) for group in groups]) for compared in COMPARED]


def _figure(compared: Compared, contents: Sequence[bytes]) -> Figure:
    settings = DocumentSettings()
    ours: Reader = lambda content: parse(content, f"a{compared.suffix}", settings).text  # noqa: E731
    rounds = [(_seconds(ours, contents), _seconds(compared.read, contents)) for _ in range(ROUNDS)]
    seconds = statistics.median(own for own, _ in rounds)
    share = statistics.median(other / own for own, other in rounds)
    size = sum(map(len, contents)) / 1e6
    measured = (
        f"{len(contents) / seconds:,.0f} documents/s, {size / seconds:.2f} MB/s ({share:.0%} of {compared.other})"
    )
    return Figure(f"parsing {compared.suffix}", measured, "stated", met=True)


def _seconds(read: Reader, contents: Sequence[bytes]) -> float:
    begun = time.perf_counter()
    for content in contents:
        if not read(content).strip():
            raise ValueError("a document without text")
    return time.perf_counter() - begun
