"""A process that holds a lease, for tests that kill, stop and cut it off: `python -m tests.state.lease_holder …`

Arguments: home, address of the database or nothing, name of the lease, its seconds. Says `held FENCE` once it has it,
and answers each line of its input by a check: `held`, or `lost REASON`.
"""

import sys

from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state import leases
from vectorize_pipelines.state.database import Database


def main(home: str, url: str, name: str, seconds: str) -> None:
    """Hold the lease until the input ends."""
    leases.LEASE_SECONDS = float(seconds)
    database = Database.open(load_settings(home=home, ledger={"url": url} if url else {}))
    with leases.hold(database, name, name, holder="a process", node="node-of-process") as lease:
        print("held", lease.fence, flush=True)
        for _ in sys.stdin:
            try:
                lease.check()
            except LedgerError as error:
                print("lost", error, flush=True)
            else:
                print("held", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
