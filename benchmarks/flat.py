"""The benchmark `flat`: a hundred times as many texts take as long each, and hardly more memory.

The texts are short, so that the larger number takes minutes and what is not the model weighs as much as it can.
"""

import random
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.ours import lay_out, measured
from benchmarks.passages import SEED, sentences

#: Of the fewest no stage of the pipeline is full yet, of `SOME` every one is.
FEW, SOME, MANY, WARM_UP = 1_000, 10_000, 100_000, 200


def run(place: Path) -> list[Figure]:
    """`encode` and the whole pipeline, with the engine that `auto` picks."""
    texts = short_texts(WARM_UP + MANY)
    laid_out = [
        lay_out(place / str(count), texts[:WARM_UP], texts[WARM_UP : WARM_UP + count], files=False)
        for count in (FEW, SOME, MANY)
    ]
    measured("encode", laid_out[0].json, place / "home-export", place / "exports", place / "vectors.npy")
    figures = []
    by_name = {"encode": [each.json for each in laid_out], "pipeline": [each.table for each in laid_out]}
    for name, sources in by_name.items():
        outcomes = [
            measured(name, source, place / f"home-{name}-{number}", place / "exports", place / "vectors.npy")
            for number, source in enumerate(sources)
        ]
        each = [outcome["seconds"] / outcome["texts"] * 1e6 for outcome in outcomes]
        # What `encode` returns is its caller's; the pipeline keeps nothing.
        returned = [outcome["vectors_mib"] if name == "encode" else 0 for outcome in outcomes]
        peaks = [outcome["peak_mib"] - vectors for outcome, vectors in zip(outcomes, returned, strict=True)]
        figures += [
            _figure(f"{name}, time a text", each, "µs", 1.1),
            _figure(f"{name}, peak memory", peaks, "MiB", 1.2),
        ]
    return figures


def short_texts(count: int) -> list[str]:
    """Different texts of a few words, about 8 tokens."""
    random_numbers = random.Random(SEED)
    words = sorted({word for sentence in sentences() for word in sentence.split() if word.isalpha()})
    return [f"{number} {' '.join(random_numbers.choices(words, k=4))}" for number in range(count)]


def _figure(name: str, values: list[float], unit: str, bound: float) -> Figure:
    few, some, many = values
    measured_as = (
        f"{many / few:.2f} times ({few:,.0f} {unit} for {FEW:,} texts, {some:,.0f} {unit} for {SOME:,}, "
        f"{many:,.0f} {unit} for {MANY:,})"
    )
    return Figure(f"flat: {name}", measured_as, f"≤ {bound} times", many / few <= bound)
