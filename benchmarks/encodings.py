"""How often detectors of encodings are right, on texts whose encoding nothing says.

`python -m benchmarks.encodings` prints the table of docs/documents.md; a detector that is not installed is left out:
`uv run --with charset-normalizer --with faust-cchardet --with chardetng-py python -m benchmarks.encodings`.
"""

import importlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress

from tests.documents.encoding_samples import LENGTHS, Sample, samples
from vectorize_pipelines.core.encodings import decode_as, encoding_name
from vectorize_pipelines.documents.formats.detection import detect

#: Samples of each length for each language in each encoding.
COUNTS = dict(zip(LENGTHS, (30, 20, 4), strict=True))

Detector = Callable[[bytes], str | None]


def ours(content: bytes) -> str | None:
    """The detector of this project, None where it refuses."""
    if content.isascii():  # told by its escape sequences, before any detection
        return "iso-2022-jp"
    guess = detect(content)
    return guess.encoding if guess and guess.is_certain_enough else None


def _chardet(content: bytes) -> str | None:
    encoding = importlib.import_module("chardet").detect(content)["encoding"]
    return str(encoding) if encoding else None


def _charset_normalizer(content: bytes) -> str | None:
    best = importlib.import_module("charset_normalizer").from_bytes(content).best()
    return str(best.encoding) if best else None


def _faust_cchardet(content: bytes) -> str | None:
    encoding = importlib.import_module("cchardet").detect(content)["encoding"]
    return str(encoding) if encoding else None


def _chardetng(content: bytes) -> str | None:
    return str(importlib.import_module("chardetng_py").detect(content))


DETECTORS: dict[str, Detector] = {
    "this project": ours,
    "chardet": _chardet,
    "charset-normalizer": _charset_normalizer,
    "faust-cchardet": _faust_cchardet,
    "chardetng": _chardetng,
}


def outcome(sample: Sample, encoding: str | None) -> str:
    """Return whether an answer reads the sample "right", "wrong", or is that it is "refused"."""
    if encoding is None:
        return "refused"
    name = encoding_name(encoding)
    with suppress(UnicodeDecodeError):
        if name and decode_as(sample.content, name) == decode_as(sample.content, encoding_name(sample.encoding) or ""):
            return "right"
    return "wrong"


def measure(detector: Detector, measured: Iterable[Sample]) -> dict[tuple[str, int], Counter[str]]:
    """Return how many samples are right, wrong and refused, by encoding and length; "" for all encodings."""
    counts: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for sample in measured:
        result = outcome(sample, detector(sample.content))
        for encoding in (sample.encoding, ""):
            counts[encoding, sample.length][result] += 1
    return counts


def percent(counts: Counter[str]) -> str:
    """Return "right / wrong" in percent; the rest was refused."""
    total = counts.total()
    return f"{100 * counts['right'] / total:.0f} / {100 * counts['wrong'] / total:.1f}".replace(" 0.0", " 0")


def main() -> None:
    """Print both tables."""
    measured = list(samples(COUNTS))
    results = {}
    print("| detector | " + " | ".join(f"{length:,} characters" for length in LENGTHS) + " | ms each |")
    print("|---|" + "---|" * (len(LENGTHS) + 1))
    for name, detector in DETECTORS.items():
        try:
            detector("é".encode("cp1252") * 20)
        except ImportError:
            continue
        begin = time.perf_counter()
        results[name] = measure(detector, measured)
        each = 1000 * (time.perf_counter() - begin) / len(measured)
        print(
            f"| {name} | " + " | ".join(percent(results[name]["", length]) for length in LENGTHS) + f" | {each:.1f} |"
        )
    print("\n| encoding | " + " | ".join(f"{length:,} characters" for length in LENGTHS) + " |")
    print("|---|" + "---|" * len(LENGTHS))
    ours_by = results["this project"]
    for encoding in dict.fromkeys(sample.encoding for sample in measured):
        print(f"| {encoding} | " + " | ".join(percent(ours_by[encoding, length]) for length in LENGTHS) + " |")


if __name__ == "__main__":
    main()
