"""A provider of remote models: a real HTTP server, in a process of its own, that speaks OpenAI's protocol.

It enforces limits by key in sliding windows and counts what exceeds them; faults come by plan (`Fault`). Use it so:

    with serving_provider({"key-1": KeyLimits(qps=5, rpm=100)}) as provider:
        settings = … providers.base_url = provider.url
        provider.change(faults=[Fault("bad_gateway", count=3)])
        …
        assert provider.report().violations == 0
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.request import Request, urlopen

from tests.paths import CHECKOUT
from tests.servers.provider_limits import KeyLimits
from tests.servers.provider_plan import Fault, Plan, plan_as_json

__all__ = ["Fault", "KeyLimits", "KeyReport", "Plan", "ProviderServer", "Report", "serving_provider"]


@dataclass(frozen=True)
class KeyReport:
    """What was done with one API key.

    most_early  seconds by which the worst request came before its windows had room for it
    violations  kind of limit (qps, rpm, tpm, concurrency) -> number
    """

    requests: int
    accepted: int
    running: int
    most_running: int
    most_early: float
    violations: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """What the server was asked.

    statuses  status of the answer -> number
    asked     digest of the content of a request -> how often it came
    answered  the same -> how often it was answered with 200, and whole
    keys      API key -> what was done with it
    """

    statuses: Mapping[str, int]
    asked: Mapping[str, int]
    answered: Mapping[str, int]
    keys: Mapping[str, KeyReport]

    @property
    def violations(self) -> int:
        """Requests that exceeded a limit, by each limit that they exceeded."""
        return sum(sum(key.violations.values()) for key in self.keys.values())

    @property
    def requests(self) -> int:
        """All requests that brought a known key."""
        return sum(key.requests for key in self.keys.values())


class ProviderServer:
    """A server that runs. `url` is what the setting `providers.base_url` takes."""

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}/v1"
        self._control = f"http://127.0.0.1:{port}/control"

    def reset(self, **plan: Any) -> None:
        """Begin anew, with empty windows and counts. `plan`: what `Plan` takes."""
        self._ask("PUT", plan)

    def change(self, **plan: Any) -> None:
        """Change parts of the plan while the server works; counts and windows stay."""
        self._ask("PATCH", plan)

    def report(self) -> Report:
        """Return what happened since the last `reset`."""
        return self._ask("GET", None)

    def _ask(self, method: str, plan: Mapping[str, Any] | None) -> Report:
        body = None if plan is None else plan_as_json(plan).encode()
        with urlopen(Request(self._control, body, {"Content-Type": "application/json"}, method=method)) as answer:
            content = json.load(answer)
        keys = {key: KeyReport(**use) for key, use in content.pop("keys").items()}
        return Report(keys=keys, **content)


@contextmanager
def serving_provider(keys: Mapping[str, KeyLimits] | None = None, **plan: Any) -> Iterator[ProviderServer]:
    """A provider that runs until the end of the block. `plan`: further arguments of `Plan`."""
    command = [sys.executable, "-m", "tests.servers.provider_app"]
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            server = ProviderServer(int(process.stdout.readline()))
            server.reset(keys=keys or {}, **plan)
            yield server
        finally:
            process.kill()
