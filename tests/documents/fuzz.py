"""Parse damaged files for some minutes: every failure must be an error with a remedy, within the limits.

    python -m tests.documents.fuzz FOLDER --minutes 20 --only .pdf .docx

Samples of every format are cut off, overwritten, repeated and mixed, and parsed in the confined processes with which
runs parse. Ends with 1, and keeps the file, where a parser crashes, takes longer or more memory than it may, or fails
without a remedy or with an address of memory. Called by `make fuzz`.
"""

import argparse
import random
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

from tests.documents.real_files import NEVER, is_well_said
from vectorize_pipelines.documents import SUPPORTED_SUFFIXES, ParserPool
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.settings import DocumentSettings

SECONDS_A_FILE = 30.0
MOST_BYTES = 256 * 1024


def mutated(content: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Return the content with one to eight damages."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        if not data:
            break
        at = chance.randrange(len(data))
        length = min(len(data) - at, chance.choice((1, 2, 4, 16, 256, 4096)))
        match chance.randrange(6):
            case 0:
                data[at : at + length] = chance.randbytes(length)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * chance.choice((1, 2, 50))
            case 3:
                data[at] = chance.choice((0, 0x7F, 0x80, 0xFF, data[at] ^ 1 << chance.randrange(8)))
            case 4:
                other = chance.choice(others)
                start = chance.randrange(max(1, len(other)))
                data[at:at] = other[start : start + length]
            case _:
                data = data[: at + 1]
    return bytes(data[:MOST_BYTES])


def main() -> int:
    """Fuzz for the time given; return 1 where anything bad was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="where samples lie")
    parser.add_argument("--minutes", type=float, default=20.0, help="for each format")
    parser.add_argument("--only", nargs="*", default=SUPPORTED_SUFFIXES, help="endings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    chosen = parser.parse_args()
    samples: dict[str, list[bytes]] = defaultdict(list)
    for folder in chosen.folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in chosen.only and path.is_file() and 0 < path.stat().st_size <= MOST_BYTES:
                samples[path.suffix.lower()].append(path.read_bytes())
    found = sum(_fuzzed(suffix, samples[suffix], chosen) for suffix in sorted(samples))
    print(f"{found} findings" + (f", kept in {chosen.keep}" if found else ""))
    return 1 if found else 0


def _fuzzed(suffix: str, samples: list[bytes], chosen: argparse.Namespace) -> int:
    chance = random.Random(f"{chosen.seed}{suffix}")
    settings = DocumentSettings(timeout_seconds=SECONDS_A_FILE, memory_bytes=2 * 2**30, max_decompressed_bytes=2**26)
    outcomes: Counter[str] = Counter()
    findings = 0
    until = time.monotonic() + chosen.minutes * 60
    with ParserPool(settings) as pool:
        while time.monotonic() < until:
            content = mutated(chance.choice(samples), samples, chance)
            try:
                pool.submit(f"fuzzed{suffix}", content=content).result()
                outcomes["parsed"] += 1
            except ItemError as error:
                outcomes[type(error).__name__] += 1
                if isinstance(error, NEVER) or not is_well_said(error):
                    findings += 1
                    chosen.keep.mkdir(exist_ok=True)
                    (chosen.keep / f"{outcomes.total()}{suffix}").write_bytes(content)
                    print(f"FOUND {suffix}: {type(error).__name__}: {error}", flush=True)
    told = ", ".join(f"{name} {count:,}" for name, count in outcomes.most_common())
    print(f"{suffix}: {outcomes.total():,} files from {len(samples)} samples: {told}", flush=True)
    return findings


if __name__ == "__main__":
    sys.exit(main())
