"""Kills, stalls and cuts off machines that embed messages and files, and counts what is there afterwards.

`make chaos-machines` (MESSAGES=100000 FILES=20000 WORKERS=4 KILLS=18 SEED=0), as root on Linux: workers in network
namespaces, with real Kafka, PostgreSQL, Redis and Weaviate, of which all but the last are restarted once. Prints how
long the work of each lost run lay idle, and the count; ends with 1 where anything is wrong.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import dagster as dg

from tests.machines.faults import Disturbance, Fault, Loss, Timing, losses
from tests.machines.folder import ChangingFolder
from tests.machines.network import check_available
from tests.machines.site import Site, Sizes, running_site
from tests.pipeline.requests.traffic import Check, Traffic
from tests.servers.dev import until
from tests.servers.packages import UnavailableError
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.pipeline.files.documents import compare_corpus
from vectorize_pipelines.runs.tags import UNFINISHED

#: How long the work of a lost run may lie idle.
MOST_SECONDS = 45.0
LEAST_WORKERS = 4
#: How long all that is left may take once every machine is back.
_END_SECONDS = 1200.0
#: From one portion of messages and files to the next.
_PORTION_SECONDS = 2.0


class Feeding:
    """Sends messages and changes files from a thread, evenly over a time; entered and left around the faults."""

    def __init__(self, traffic: Traffic, folder: ChangingFolder, messages: int, files: int, seconds: float):
        self._portions = max(1, round(seconds / _PORTION_SECONDS))
        self._traffic = traffic
        self._folder = folder
        self._messages = messages
        self._files = files
        self._error: BaseException | None = None
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name="feeding", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Wait until all is sent, unless the body has failed; raise what went wrong with it."""
        if kind is not None:
            self._given_up.set()
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _work(self) -> None:
        began = time.monotonic()
        try:
            for number in range(self._portions):
                if self._given_up.wait(max(0.0, began + number * _PORTION_SECONDS - time.monotonic())):
                    return
                self._traffic.send(_share(self._messages, number, self._portions))
                self._folder.change(_share(self._files, number, self._portions))
        except BaseException as error:  # noqa: BLE001 (it is raised where the thread is waited for)
            self._error = error


def _share(total: int, number: int, portions: int) -> int:
    return total // portions + (number < total % portions)


def disturb(
    site: Site, messages: int, files: int, faults: int, seed: int, timing: Timing
) -> tuple[Sequence[Fault], list[Check]]:
    """Feed a site while its machines fail, wait until nothing is left to do, and count what is there."""
    traffic, folder = Traffic(site.installation, seed), ChangingFolder(site.corpus, seed)
    disturbance = Disturbance(site, random.Random(seed), timing)
    # From before the first fault until just before the last one, so that there is always something to lose.
    with Feeding(traffic, folder, messages, files, (faults - 0.5) * timing.every):
        until("runs on a machine", lambda: any(site.runs_on(each) for each in site.workers))
        disturbance.work(faults)
    until("the end of all work", lambda: _is_idle(site), _END_SECONDS)
    return disturbance.faults, [*traffic.check(), folder.check(site.installation), _begun_once(site)]


def _is_idle(site: Site) -> bool:
    """Return whether no run is left, and there is nothing to launch one for."""
    for each in site.workers:
        each.check_alive()
    time.sleep(1)
    with suppress(VectorizeError):
        if site.installation.outstanding():
            return False
        difference = compare_corpus(site.installation.settings)
        if difference.changed or difference.vanished:
            return False
        return site.instance.get_runs_count(dg.RunsFilter(statuses=UNFINISHED)) == 0
    return False


def _begun_once(site: Site) -> Check:
    """Hold how often each run began, by its events, against once."""
    runs = [run.run_id for run in site.instance.get_runs()]
    starts = [len(site.instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_START)) for run_id in runs]
    return Check("runs, none of which began twice", len(starts), len(starts), sum(each > 1 for each in starts))


def _late(found: Sequence[Loss]) -> Check:
    late = sum(each.seconds is not None and each.seconds > MOST_SECONDS for each in found)
    return Check(f"lost runs whose work went on within {MOST_SECONDS:.0f} s", len(found), len(found) - late, late)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=4, help="machines, at least four")
    parser.add_argument("--kills", type=int, default=18, help="faults: machines killed, stalled and cut off in turn")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.workers < LEAST_WORKERS:
        parser.error(f"--workers: three machines may be away at the same time, so it takes {LEAST_WORKERS}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # all that was started ends, too
    try:
        check_available()
    except UnavailableError as error:
        sys.exit(str(error))
    started = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="vectorize-machines-"))
    print(f"logs are in {place}", flush=True)
    with running_site(place / "site", Sizes(machines=options.workers)) as site:
        faults, checks = disturb(site, options.messages, options.files, options.kills, options.seed, Timing())
        found = losses(site.instance, faults, list(site.installation.ledger().values()))
    checks.append(_late(found))
    print(f"\n{options.messages:,} messages and {options.files:,} files, {options.workers} machines")
    met = len({each.fault.at for each in found})
    print(f"{len(faults)} faults, of which {met} met runs, seed {options.seed}, {time.monotonic() - started:.0f} s\n")
    print(f"{'at':<10}{'machine':<12}{'':<10}{'lost run':<20}{'idle (s)':>8}  gone on by")
    print(*found, sep="\n")
    print(f"\n{'afterwards':<56}{'expected':>10}{'found':>10}")
    print(*checks, sep="\n")
    if not all(check.is_right for check in checks):
        sys.exit(1)
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
