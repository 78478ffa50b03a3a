"""Parse thousands of real files, and hold the text of each against a second, independent extractor.

    python -m tests.documents.real_files /usr/share/doc --each 300

Files are chosen by ending, `--each` of one at the most, the same ones for the same `--seed`. Prints a table by format
and every file whose text lacks more than a tenth of the words that the second extractor finds; ends with 1 where a
parser crashed, hung, took more memory than it may, or refused a file without a remedy. Called by `make real-files`.
"""

import argparse
import random
import re
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.documents.second_extractors import other_words, recall, words
from vectorize_pipelines.documents import SUPPORTED_SUFFIXES, ParserPool
from vectorize_pipelines.documents.errors import ParserCrashedError, ParserMemoryError, ParseTimeoutError
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.settings import DocumentSettings

#: Of the words that the second extractor finds.
WANTED_RECALL = 0.9
NEVER = (ParserCrashedError, ParserMemoryError, ParseTimeoutError)
#: As Python and pypdf show one; a checksum is none.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+|, [0-9]{12,}\)")


@dataclass
class FormatResult:
    """What became of the files of one ending."""

    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    noticed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    recalls: list[float] = field(default_factory=list)


def files_below(folders: Sequence[Path], each: int, seed: int) -> Iterator[Path]:
    """Yield files with a supported ending, `each` of one ending at the most, chosen by the seed."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUPPORTED_SUFFIXES and path.is_file() and path.stat().st_size:
                found[path.suffix.lower()].append(path)
    for suffix in sorted(found):
        yield from random.Random(seed).sample(found[suffix], min(each, len(found[suffix])))


def is_well_said(error: ItemError) -> bool:
    """Return whether an error has a remedy and no address of memory."""
    message = str(error)
    return ";" in message and not _ADDRESS.search(message)


def main() -> int:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--each", type=int, default=300, help="files of one ending at the most")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    results: dict[str, FormatResult] = defaultdict(FormatResult)
    bad: list[str] = []
    settings = DocumentSettings(text_columns=("text",))
    with ParserPool(settings) as pool:
        for path in files_below(chosen.folders, chosen.each, chosen.seed):
            bad += _tried(pool, path, results[path.suffix.lower()])
    _show(results)
    for line in bad:
        print(line)
    print(f"{sum(result.files for result in results.values()):,} files")
    return 1 if any(line.startswith("BAD") for line in bad) else 0


def _tried(pool: ParserPool, path: Path, result: FormatResult) -> list[str]:
    """Parse a file; return what is to be looked at."""
    content = path.read_bytes()
    result.files += 1
    result.bytes += len(content)
    begun = time.monotonic()
    try:
        document = pool.submit(str(path)).result().document
    except ItemError as error:
        result.refused[type(error).__name__] += 1
        worst = isinstance(error, NEVER) or not is_well_said(error)
        return [f"BAD {path}: {type(error).__name__}: {error}"] if worst else []
    finally:
        result.seconds += time.monotonic() - begun
    assert document is not None, "no hash was known"
    result.noticed += bool(document.notices)
    expected = other_words(content, path.suffix.lower())
    if expected is None:
        return []
    result.recalls.append(recall(expected, words(document.text)))
    if result.recalls[-1] >= WANTED_RECALL:
        return []
    said = "; ".join(map(str, document.notices)) or "nothing said"
    return [f"low {path}: {result.recalls[-1]:.0%} of {expected.total():,} words; {said}"]


def _show(results: dict[str, FormatResult]) -> None:
    table = Table("ending", "files", "MB/s", "files/s", "with notices", "refused", "recall, median", "below 90 %")
    for suffix, result in sorted(results.items()):
        refused = ", ".join(f"{name} {count}" for name, count in result.refused.most_common())
        median = f"{statistics.median(result.recalls):.1%}" if result.recalls else ""
        low = sum(value < WANTED_RECALL for value in result.recalls)
        rate, speed = result.files / result.seconds, result.bytes / 1e6 / result.seconds
        table.add_row(
            suffix, f"{result.files:,}", f"{speed:.2f}", f"{rate:.1f}", str(result.noticed), refused, median, str(low)
        )
    Console(width=200).print(table)


if __name__ == "__main__":
    sys.exit(main())
