"""Maintenance of large tables, in processes of their own: LanceDB keeps what memory compaction took.

Called by `LanceDBStore.maintain`, which holds the table's lock.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from vectorize_pipelines.core.urls import without_secrets
from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.stores.lancedb.connection import connect
from vectorize_pipelines.stores.lancedb.durability import make_durable
from vectorize_pipelines.stores.lancedb.location import Location
from vectorize_pipelines.stores.lancedb.maintenance import MaintenanceWork, carry_out_large

_DONE = "done\n"
_COMMAND = "from vectorize_pipelines.stores.lancedb.maintenance_process import main; main()"


class MaintenanceProcesses:
    """Processes that do what is due to a table, each used once. Used by the threads of one process.

    LanceDB does not give back all the memory that compaction takes: a run of 100,000 passages grew to twice its size.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._lock = threading.Lock()
        self._prepared: _Process | None = None
        self._ending: list[_Process] = []

    def prepare(self) -> None:
        """Start the next process, so that writers need not wait until it is ready, which takes a second or two."""
        with self._lock:
            self._ending = [process for process in self._ending if process.is_alive()]
            if self._prepared is None or not self._prepared.is_alive():
                self._prepared = _Process(self._location)

    def carry_out(self, physical: str, work: MaintenanceWork) -> None:
        """Do what is due in a process. Raises `StoreError` with its words; the table is then as before or as after."""
        self.prepare()
        with self._lock:
            process, self._prepared = self._prepared, None
        process = process or _Process(self._location)
        try:
            process.carry_out(physical, work)
        except BaseException:
            process.kill()
            raise
        with self._lock:
            self._ending.append(process)

    def close(self) -> None:
        """End the process that waits, if one does."""
        with self._lock:
            for process in [*self._ending, *([] if self._prepared is None else [self._prepared])]:
                process.kill()
            self._prepared, self._ending = None, []


class _Process:
    """A process that connects to a location, waits for one task, does it, says so, and ends."""

    def __init__(self, location: Location) -> None:
        pipe = subprocess.PIPE
        # A file, since nobody reads a pipe while the process works, and a full one would stop it.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        # A group of its own: a terminal's Ctrl-C is for the run, which ends what it has begun.
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND],
            stdin=pipe,
            stdout=pipe,
            stderr=self._said,
            text=True,
            process_group=0,
        )
        self._secrets = location.secrets
        # Not by arguments, which everyone on the machine can see: a location may hold credentials.
        directory = None if location.directory is None else str(location.directory)
        self._say({"uri": location.uri, "directory": directory, "options": dict(location.options)})

    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def carry_out(self, physical: str, work: MaintenanceWork) -> None:
        """Have the process do its task. Raises `StoreError`."""
        self._say({"physical": physical, "work": asdict(work)})
        assert self._popen.stdout is not None, "it is a pipe"
        if all(line != _DONE for line in iter(self._popen.stdout.readline, "")):
            self._popen.wait()
            self._said.seek(0)
            said = self._said.read().decode("utf-8", "replace").strip().splitlines()
            reason = without_secrets((said or [f"exit status {self._popen.returncode}"])[-1], *self._secrets)
            raise StoreError(f"maintaining {physical!r} failed: {reason}")

    def kill(self) -> None:
        self._popen.kill()
        self._popen.communicate()
        self._said.close()

    def _say(self, what: object) -> None:
        assert self._popen.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError):  # it has died: what it does not answer tells
            self._popen.stdin.write(json.dumps(what) + "\n")
            self._popen.stdin.flush()


def _end_with_parent() -> None:
    """End this process once standard input ends, as it does when the parent has gone."""
    # Not through `sys.stdin`, whose lock this thread would still hold when the process ends as it should.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


def main() -> None:
    """Run the process; without a task, because the process that started it has gone, it ends at once."""
    import lance  # noqa: F401 (takes most of a second, for which nobody waits yet)

    place = json.loads(sys.stdin.readline())
    directory = None if place["directory"] is None else Path(place["directory"])
    database = connect(Location(place["uri"], directory, place["options"]))
    given = sys.stdin.readline()
    if given:
        # The table's lock goes with its holder, and without it nothing may go on. Whenever it ends, no commit is half.
        threading.Thread(target=_end_with_parent, daemon=True).start()
        task = json.loads(given)
        physical = task["physical"]
        table, work = database.open_table(physical), MaintenanceWork(**task["work"])
        carry_out_large(table, work, lambda: None if directory is None else make_durable(directory, physical))
        print(_DONE, end="", flush=True)
