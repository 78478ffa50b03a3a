"""The process of a server in tests: started until it answers, and ended in good order or as a crash would end it."""

import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

_READY_SECONDS = 90.0
_STOP_SECONDS = 30.0
_LOOK_SECONDS = 0.02


class ServerProcess(ABC):
    """A server with its data in `folder`. Starting it again after `kill` or `stop` finds that data."""

    #: As errors name it.
    name: ClassVar[str]
    folder: Path
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        """The file that it writes its log to."""
        return self.folder / f"{self.name.lower()}.log"

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers. Raises `RuntimeError` with its log if not."""
        if self._process is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        command = self._command()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while self._process.poll() is not None or not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.name} does not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(_LOOK_SECONDS)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @abstractmethod
    def _command(self) -> list[str]:
        """Return what starts it, after making what it needs."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Return whether it answers."""

    def _environment(self) -> Mapping[str, str] | None:
        """Return the environment that it has; None: that of the tests."""
        return None

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
