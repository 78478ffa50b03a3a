"""Measures the main job on the machine at hand and prints a table: `make bench`, or `make bench ONLY=memory`.

Every figure that is judged is a ratio of two things measured in this run, or a rate with its bound beside it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    assessments,
    encoders,
    first_vector,
    flat,
    http,
    images,
    kafka,
    kafka_idle,
    keys,
    parsing,
    shards,
    stores,
)
from benchmarks.figures import Figure, ProcessFailedError, python, report
from benchmarks.passages import write_documents
from tests.servers import postgresql
from vectorize_pipelines.settings import PROJECT_ROOT

FILES = 50_000
ROUNDS = 5


def pipeline_run(folder: Path, home: Path, kind: str, database: str = "") -> dict[str, Any]:
    """See `pipeline_run.py`."""
    command = ("-m", "benchmarks.pipeline_run", str(folder), str(home), kind, database)
    outcome: dict[str, Any] = json.loads(python(*command).stdout.splitlines()[-1])
    return outcome


def rescan(place: Path) -> list[Figure]:
    """A second run over unchanged files."""
    folder, home = place / "docs", place / "home"
    write_documents(folder, FILES, 1, 20)
    pipeline_run(folder, home, "null")
    seconds = statistics.median(pipeline_run(folder, home, "null")["seconds"] for _ in range(ROUNDS))
    rate = FILES / seconds
    return [Figure(f"rescan of {FILES:,} unchanged files", f"{rate:,.0f} files/s", "≥ 10,000 files/s", rate >= 10_000)]


def rescan_in_postgresql(place: Path) -> list[Figure]:
    """The same with the manifest in PostgreSQL, in turn with one in a file."""
    folder = place / "docs"
    write_documents(folder, FILES, 1, 20)
    with postgresql.running() as server:
        homes = {place / "home": "", place / "home-postgresql": server.url()}
        for home, database in homes.items():
            pipeline_run(folder, home, "null", database)
        rounds = [
            [pipeline_run(folder, home, "null", database)["seconds"] for home, database in homes.items()]
            for _ in range(ROUNDS)
        ]
    rate = FILES / statistics.median(in_database for _, in_database in rounds)
    share = statistics.median(in_file / in_database for in_file, in_database in rounds)
    measured = f"{rate:,.0f} files/s ({share:.0%} of those with a file)"
    name = f"rescan of {FILES:,} unchanged files, manifest in PostgreSQL"
    return [Figure(name, measured, "≥ 10,000 files/s", rate >= 10_000)]


TRIVIAL_JOB = """
import dagster as dg
from datetime import UTC, datetime

daily = dg.DailyPartitionsDefinition(start_date="2020-01-01", end_offset=1)

@dg.asset(partitions_def=daily)
def trivial():
    return None

@dg.asset_check(asset=trivial)
def a_check():
    return dg.AssetCheckResult(passed=True)

@dg.asset_check(asset=trivial)
def another():
    return dg.AssetCheckResult(passed=True)

@dg.asset_check(asset=trivial)
def a_third():
    return dg.AssetCheckResult(passed=True)

job = dg.define_asset_job("job", "*", executor_def=dg.in_process_executor)
defs = dg.Definitions(assets=[trivial], asset_checks=[a_check, another, a_third], jobs=[job])
if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        defs.resolve_job_def("job").execute_in_process(
            instance=instance,
            partition_key=datetime.now(UTC).date().isoformat(),
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
"""


def start_up(place: Path) -> list[Figure]:
    """`vectorize ingest` with nothing to do, against a Dagster job that does nothing, in turn."""
    folder, home = place / "docs", place / "home"
    write_documents(folder, 5, 1, 20)
    trivial = place / "trivial.py"
    trivial.write_text(TRIVIAL_JOB)
    ours = ("-c", "from vectorize_pipelines.cli import main; main()", "ingest", str(folder))
    dagster_home = str(home / "dagster")
    python(*ours, VECTORIZE_HOME=str(home))
    differences = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        python(str(trivial), DAGSTER_HOME=dagster_home)
        between = time.perf_counter()
        python(*ours, VECTORIZE_HOME=str(home))
        differences.append((time.perf_counter() - between) - (between - started))
    beyond = statistics.median(differences)
    return [Figure("start-up beyond Dagster's own, nothing to do", f"{beyond:.2f} s", "≤ 1 s", beyond <= 1)]


def memory(place: Path) -> list[Figure]:
    """Peak resident memory of the run's process for ten times as many passages."""
    peaks = []
    for documents in (1_000, 10_000):
        folder = place / f"docs-{documents}"
        write_documents(folder, documents, 10, 150)
        peaks.append(pipeline_run(folder, place / f"home-{documents}", "null"))
    ratio = peaks[1]["peak_mib"] / peaks[0]["peak_mib"]
    counts = " and ".join(f"{peak['chunks']:,} passages {peak['peak_mib']:.0f} MiB" for peak in peaks)
    return [Figure("peak memory", f"{ratio:.2f} times ({counts})", "≤ 1.2 times", ratio <= 1.2)]


def throughput(place: Path) -> list[Figure]:
    """End to end against the bare encoder on the same passages, in one process, with two engines."""
    figures = []
    for engine, documents in (("sentence-transformers", 120), ("auto", 600)):
        folder = place / f"docs-{engine}"
        write_documents(folder, documents, 10, 110)
        outcomes = [pipeline_run(folder, place / f"home-{engine}-{n}", engine) for n in range(3)]
        share = statistics.median(outcome["bare_seconds"] / outcome["seconds"] for outcome in outcomes)
        rate = statistics.median(outcome["chunks"] / outcome["seconds"] for outcome in outcomes)
        measured = f"{share:.0%} of the bare encoder ({rate:.0f} texts/s)"
        figures.append(Figure(f"throughput end to end, {outcomes[0]['engine']}", measured, "≥ 90 %", share >= 0.9))
    return figures


def demo(place: Path) -> list[Figure]:
    """`make demo` in a fresh clone, the package cache being warm."""
    clone = place / "clone"
    subprocess.run(["git", "clone", "-q", str(PROJECT_ROOT), str(clone)], check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VECTORIZE_", "VIRTUAL_"))}
    started = time.perf_counter()
    subprocess.run(["make", "demo"], cwd=clone, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    return [Figure("make demo in a fresh clone", f"{seconds:.0f} s", "< 90 s", seconds < 90)]


BENCHMARKS: dict[str, Callable[[Path], list[Figure]]] = {
    "rescan": rescan,
    "rescan-postgresql": rescan_in_postgresql,
    "start-up": start_up,
    "memory": memory,
    "throughput": throughput,
    "shards": shards.run,
    "encoders": encoders.run,
    "images": images.run,
    "first-vector": first_vector.run,
    "flat": flat.run,
    "stores": stores.run,
    "kafka": kafka.run,
    "kafka-cold": kafka_idle.cold,
    "kafka-warm": kafka_idle.warm,
    "http": http.run,
    "http-ledger": http.ledger.run,
    "keys": keys.run,
    "assessments": assessments.run,
    "parsing": parsing.run,
    "demo": demo,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", choices=[*BENCHMARKS, []], help="which ones; all by default")
    figures: list[Figure] = []
    for name in parser.parse_args().only or BENCHMARKS:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        place = Path(tempfile.mkdtemp(prefix="vectorize-bench-"))
        try:
            figures += BENCHMARKS[name](place)
        except ProcessFailedError as error:
            figures.append(Figure(name, f"not measured: {error}", "a measurement", met=False))
        finally:
            shutil.rmtree(place, ignore_errors=True)
    sys.exit(report(figures))


if __name__ == "__main__":
    main()
