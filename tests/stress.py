"""Tests again and again, while every core is kept busy: `python -m tests.stress [--rounds N] [--keep-going] TESTS…`

Each round is a session of pytest of its own. It ends at the first one that fails; `--keep-going` runs them all.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

ROUNDS = 20


def be_busy(parent: int) -> None:
    """Use a core until the process that started this one has ended, however it did."""
    while os.getppid() == parent:
        sum(range(100_000))


@contextmanager
def busy_cores() -> Iterator[None]:
    """As many processes as there are cores, none of which does anything else."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=be_busy, args=(os.getpid(),)) for _ in range(os.cpu_count() or 1)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def stress(tests: Sequence[str], rounds: int, keep_going: bool) -> int:
    """Run the rounds and say what came of each; returns how many failed."""
    failed = 0
    for number in range(1, rounds + 1):
        start = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        seconds = time.monotonic() - start
        if done.returncode == 0:
            print(f"round {number} of {rounds}: passed in {seconds:.0f} s", flush=True)
            continue
        failed += 1
        print(f"{done.stdout}\nround {number} of {rounds}: FAILED ({done.returncode}) in {seconds:.0f} s", flush=True)
        if not keep_going:
            break
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument("--keep-going", action="store_true", help="go on after a round that failed")
    parser.add_argument("tests", nargs="+", metavar="TESTS", help="as pytest takes them")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least one")
    try:
        with busy_cores():
            failed = stress(arguments.tests, arguments.rounds, arguments.keep_going)
    except KeyboardInterrupt:
        sys.exit(130)
    if failed:
        print(f"{failed} failed", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
