"""A process that ends the process groups of a supervisor, also when the supervisor is killed.

    guardian.py GRACE_SECONDS FOLDER [GROUP ...]

It reads lines from its standard input: `started GROUP` for each group of processes that is started after it, `ended
GROUP` for one that is no more. The end of the input is the sign to end them: the supervisor asks for it, or is gone.
What was started last gets SIGTERM first. Then the folder is removed.

It runs as a plain script with nothing but the standard library, so that it costs little.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

_POLL_SECONDS = 0.05
_STATE, _GROUP = 0, 2  # fields of /proc/PID/stat behind the name of the program


def main(grace_seconds: float, folder: str, groups: list[int]) -> None:
    """Note groups until the input ends, then end them, each with the grace to end by itself, and remove the folder."""
    # Signals of a terminal, and of a service manager, are the supervisor's to handle.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for line in sys.stdin:
        event, group = line.split()
        (groups.append if event == "started" else groups.remove)(int(group))
    groups = existing(groups)
    while groups:
        groups = _end(groups.pop(), groups, grace_seconds)
    shutil.rmtree(folder, ignore_errors=True)


def _end(group: int, others: list[int], grace_seconds: float) -> list[int]:
    """Send SIGTERM, and SIGKILL to what is there after the grace. Return those of the others that are left by then."""
    send(group, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while is_alive(group):
        if time.monotonic() > deadline:
            send(group, signal.SIGKILL)
            break
        time.sleep(_POLL_SECONDS)
        others = existing(others)
    return existing(others)


def existing(groups: list[int]) -> list[int]:
    """Return the groups with a process in them. The number of any other may be that of somebody else's group soon."""
    return [group for group in groups if _exists(group)]


def is_alive(group: int) -> bool:
    """Return whether a process of the group runs. One that has ended and was not waited for does not."""
    return _exists(group) and not _all_ended(group)


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):  # PermissionError: on macOS where all of them have ended
        return False
    return True


def _all_ended(group: int) -> bool:
    """Return whether nothing is left of the group but what nobody waits for. False where that is not Linux."""
    stats = list(Path("/proc").glob("[0-9]*/stat"))
    states = set()
    for stat in stats:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[_GROUP]) == group:
                states.add(fields[_STATE])
    return bool(stats) and states <= {"Z", "X"}


def send(group: int, number: signal.Signals) -> None:
    """Send a signal to all processes of a group, if there are any."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], [int(group) for group in sys.argv[3:]])
