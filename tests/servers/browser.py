"""A real browser for tests: headless Chromium, spoken to by its own protocol (DevTools) over a WebSocket.

`python -m tests.servers.browser` looks for it, and installs it where root runs it on Debian. Nothing here knows the
project's own code.
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from websockets.sync.client import ClientConnection, connect

from tests.servers.packages import UnavailableError, ensure

_PACKAGE = "chromium"
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_ANSWER_SECONDS = 60.0


class PageError(Exception):
    """The script of a test failed in the page."""


def program() -> str:
    """The browser's program. Raises `UnavailableError`."""
    for name in _PROGRAMS:
        found = shutil.which(name)
        if found is not None:
            return found
    raise UnavailableError(f"there is no Chromium here; on Debian: apt-get install {_PACKAGE}")


class Page:
    """A tab of the browser."""

    def __init__(self, connection: ClientConnection):
        self._connection = connection
        self._numbers = itertools.count(1)
        self._events: list[dict[str, Any]] = []
        self.call("Page.enable")

    def open(self, url: str) -> None:
        """Go to an address, and wait until it is loaded, or has failed to be."""
        self._events.clear()
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + _ANSWER_SECONDS
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive(deadline)

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page, once it is resolved. Raises `PageError`."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise PageError(str(answer["exceptionDetails"].get("exception", answer["exceptionDetails"])))
        return answer["result"].get("value")

    def screenshot(self) -> bytes:
        """What the page looks like, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of one method of the protocol."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            message = self._receive(deadline)
            if message.get("id") == number:
                if "error" in message:
                    raise PageError(f"{method}: {message['error']}")
                return dict(message["result"])

    def _receive(self, deadline: float) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._connection.recv(timeout=max(0.0, deadline - time.monotonic())))
        if "method" in message:
            self._events.append(message)
        return message


@dataclass
class Browser:
    """A browser with its profile below `folder`. `names` are host names that it takes for addresses."""

    folder: Path
    names: Mapping[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Start it, and wait until it answers. Raises `RuntimeError` with its log if it does not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log, port = self.folder / "browser.log", self.folder / "DevToolsActivePort"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while not (port.exists() and port.read_text().count("\n")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"Chromium does not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        self._address = f"127.0.0.1:{port.read_text().splitlines()[0]}"

    @contextmanager
    def page(self) -> Iterator[Page]:
        """Open a tab, which is closed at the end."""
        request = urllib.request.Request(f"http://{self._address}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            url = json.load(answer)["webSocketDebuggerUrl"]
        with connect(url, max_size=None, proxy=None) as connection:
            page = Page(connection)
            yield page
            page.call("Page.close")

    def stop(self) -> None:
        """End it with all its processes."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _command(self) -> list[str]:
        rules = ",".join(f"MAP {name} {address}" for name, address in self.names.items())
        command = [program(), "--headless", "--remote-debugging-port=0", f"--user-data-dir={self.folder}"]
        command += ["--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"]
        command += ["--disable-background-networking", "--disable-component-update", "--window-size=1400,900"]
        if rules:
            command.append(f"--host-resolver-rules={rules}")
        if os.geteuid() == 0:  # its sandbox does not run as root
            command.append("--no-sandbox")
        return [*command, "about:blank"]


def main() -> None:
    """Look for the browser. Where it is missing, its tests are left out, which is a failure only where CI is set."""
    try:
        if not any(map(shutil.which, _PROGRAMS)):
            ensure(_PROGRAMS[0], _PACKAGE)
    except UnavailableError as error:
        print(f"tests with a browser are left out: {error}", file=sys.stderr)
        sys.exit(os.environ.get("CI") == "true")


if __name__ == "__main__":
    main()
