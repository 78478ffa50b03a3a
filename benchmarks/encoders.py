"""The benchmark `encoders`: this project's encoder and pipeline against other systems and against the ceiling.

Every measurement is a process of its own: ours by `encoders_run.py`, the others by `peers/NAME/pipeline.py` in the
environment that `peers/environments.py` makes. All have the same weights and the same passages.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import RESULTS, Figure, ProcessFailedError, process, table
from benchmarks.ours import lay_out, measured
from benchmarks.passages import passages_of_tokens
from benchmarks.peers.environments import interpreter
from benchmarks.plots import bars
from vectorize_pipelines.encoders.engines.equality import compare
from vectorize_pipelines.encoders.models.locate import locate_model
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL

#: Passages for ours, so that what happens once in a run does not weigh; the peers get the first of them.
PASSAGES, PEERS_PASSAGES, WARM_UP = 5120, 512, 32
ROUNDS = 3

CEILING = "ceiling: bare forward passes"
ENCODE = "this project: encode"
PIPELINE = "this project: a table into LanceDB"
PIPELINE_OF_FILES = "this project: a file each into LanceDB"

REFERENCE = "sentence_transformers"
PEERS = {
    "haystack": "Haystack",
    "llamaindex": "LlamaIndex",
    "txtai": "txtai",
    "cocoindex": "CocoIndex",
}
#: By name of the row: what is tried, of which the fastest is measured.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "default": [{}],
    "batch 256": [{"batch_size": 256}],
    "tuned": [{"batch_size": size, "dtype": dtype} for dtype in (None, "bfloat16") for size in (8, 16, 32, 64)],
}
#: How many times as fast as a peer the whole pipeline is to be.
TIMES = {"batch 256": 10, "tuned": 6}

#: Peers neither ask the hub for what lies on disk nor report that they were used.
QUIET = {"HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False", "TOKENIZERS_PARALLELISM": "true"}


@dataclass(frozen=True)
class Row:
    """One system under one setting. `remark` says what was tried, or why there is no rate."""

    system: str
    setting: str
    rate: float | None
    cosine: str
    remark: str


class Passages:
    """The passages on disk, for all that are measured, and the reference once it is known."""

    def __init__(self, place: Path) -> None:
        made = passages_of_tokens(WARM_UP + PASSAGES, place / "exports")
        warm_up, passages = made[:WARM_UP], made[WARM_UP:]
        self.place = place
        self.ours = lay_out(place / "ours", warm_up, passages)
        self.peers = lay_out(place / "peers", warm_up, passages[:PEERS_PASSAGES], files=False).json

    def cosine(self, vectors: Path) -> str:
        """To sentence-transformers in float32, on the passages that all have."""
        reference = np.load(self.place / f"{REFERENCE}-default.npy")
        return f"{compare(np.load(vectors)[:PEERS_PASSAGES], reference).mean_cosine:.6f}"


def run(place: Path) -> list[Figure]:
    """Measures, prints the table and says where the plot lies."""
    passages = Passages(place)
    reference = [_peer(passages, REFERENCE, "sentence-transformers: encode", setting) for setting in SETTINGS]
    rates = _ours(passages)
    rows = [Row(name, "", rate, passages.cosine(place / f"{name}.npy"), "") for name, rate in rates.items()]
    peers = [
        _peer(passages, peer, f"{name}: pipeline", setting) for peer, name in PEERS.items() for setting in SETTINGS
    ]
    _show([*rows, *reference, *peers])
    return [
        _share("encode", rates[ENCODE], rates[CEILING], 0.95),
        _share("whole pipeline", rates[PIPELINE], rates[CEILING], 0.9),
        *(_lead(rates[PIPELINE], row) for row in peers if row.setting in TIMES),
    ]


def _ours(passages: Passages) -> dict[str, float]:
    """Texts/s by measurement: medians of rounds in turn, so that a slow moment of the machine strikes all."""
    place, texts = passages.place, passages.ours
    measurements = {
        CEILING: ("ceiling", texts.json),
        ENCODE: ("encode", texts.json),
        PIPELINE: ("pipeline", texts.table),
        PIPELINE_OF_FILES: ("pipeline", texts.files),
    }
    rates: dict[str, list[float]] = {name: [] for name in measurements}
    measured("encode", passages.peers, place / "home-export", place / "exports", place / "export.npy")
    for number in range(ROUNDS):
        for name, (kind, source) in measurements.items():
            print(f"measuring {name} …", file=sys.stderr, flush=True)
            home, vectors = place / f"home-{name}-{number}", place / f"{name}.npy"
            rates[name].append(PASSAGES / measured(kind, source, home, place / "exports", vectors)["seconds"])
    return {name: statistics.median(each) for name, each in rates.items()}


def _peer(passages: Passages, peer: str, system: str, setting: str) -> Row:
    """A peer that cannot be installed or run gives a row without a rate that says why."""
    print(f"measuring {system}, {setting} …", file=sys.stderr, flush=True)
    vectors = passages.place / f"{peer}-{setting}.npy"
    task = {
        "passages": str(passages.peers),
        "model": str(locate_model(DEFAULT_TEXT_MODEL).directory),
        "folder": str(passages.place / f"{peer}-{setting}"),
        "vectors": str(vectors),
        "candidates": SETTINGS[setting],
    }
    quiet = {**QUIET, "LLAMA_INDEX_CACHE_DIR": str(passages.place / "llamaindex-cache")}
    try:
        command = sys.executable if peer == REFERENCE else interpreter(peer)
        done = process(command, "-m", f"benchmarks.peers.{peer}.pipeline", stdin=json.dumps(task), **quiet)
    except ProcessFailedError as error:
        return Row(system, setting, None, "", str(error))
    outcome = json.loads(done.stdout.splitlines()[-1])
    remark = f"best of {_tried(outcome['tried'])}" if outcome["tried"] else ""
    return Row(system, setting, PEERS_PASSAGES / outcome["seconds"], passages.cosine(vectors), remark)


def _tried(tried: Sequence[tuple[dict[str, Any], float]]) -> str:
    """`float32 4: 25, 8: 24 …; bfloat16 4: 60 …`"""
    by_type: dict[str, list[str]] = {}
    for settings, rate in tried:
        by_type.setdefault(settings["dtype"] or "float32", []).append(f"{settings['batch_size']}: {rate:.0f}")
    return "; ".join(f"{name} {', '.join(rates)}" for name, rates in by_type.items())


def _share(name: str, rate: float, ceiling: float, wanted: float) -> Figure:
    measured = f"{rate / ceiling:.0%} of the ceiling ({rate:.0f} of {ceiling:.0f} texts/s)"
    return Figure(f"encoders: {name}", measured, f"≥ {wanted:.0%}", rate / ceiling >= wanted)


def _lead(pipeline: float, row: Row) -> Figure:
    times, name = TIMES[row.setting], f"encoders: whole pipeline against {row.system.split(':')[0]}, {row.setting}"
    if row.rate is None:
        return Figure(name, f"not measured: {row.remark.splitlines()[-1]}", f"≥ {times} times", met=False)
    measured = f"{pipeline / row.rate:.1f} times ({pipeline:.0f} and {row.rate:.1f} texts/s)"
    return Figure(name, measured, f"≥ {times} times", pipeline / row.rate >= times)


def _show(rows: Sequence[Row]) -> None:
    def cells(row: Row) -> Iterator[str]:
        yield f"{row.system}{', ' + row.setting if row.setting else ''}"
        yield f"{row.rate:.1f}" if row.rate else "failed"
        yield row.cosine

    print(f"all-MiniLM-L6-v2 on the CPU, passages of 155 tokens on average; {PASSAGES:,} for ours and for the ceiling,")
    print(f"of which the others have the first {PEERS_PASSAGES}:\n")
    print(table(["", "texts/s", "cosine to float32"], [list(cells(row)) for row in rows]))
    for row in rows:
        if row.remark:
            print(f"\n{row.system}, {row.setting}: {row.remark}")
    labels = {next(cells(row)): row.rate for row in rows if row.rate}
    print(f"\nplot: {bars(labels, 'texts/s', RESULTS / 'encoders.png')}\n")
