"""Machines of a network of their own: network namespaces, joined by a bridge at which servers of this machine listen.

Linux, as root, with `ip` of iproute2. Namespaces and links carry the number of the process that made them: what one has
left behind that was killed is removed when the next one makes its own. Used by `site.py`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tests.servers.packages import UnavailableError

#: Of all names here: the number of the process follows, then `b` for its bridge, or `m` and the number of a machine.
_PREFIX = "vecnet"
_OURS = re.compile(rf"{_PREFIX}(\d+)[bm]")
#: The first two numbers of the addresses; the third one is the network's, and the fourth a machine's.
_ADDRESSES = "10.213"
_END_SECONDS = 60.0


class NetworkError(RuntimeError):
    """The system refuses something that a network needs."""


@dataclass(frozen=True)
class Machine:
    """A namespace with a link to the bridge, which can be cut."""

    namespace: str
    address: str

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return what starts a program on this machine, in the process that is started itself."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def processes(self) -> list[int]:
        """Return the ids of all processes of this machine."""
        return [int(number) for number in _ip("netns", "pids", self.namespace).split()]

    def kill(self) -> None:
        """End all processes as a power cut would, and wait until they are gone."""
        deadline = time.monotonic() + _END_SECONDS
        while found := [number for number in self.processes() if not _is_zombie(number)]:
            if time.monotonic() > deadline:
                raise NetworkError(f"processes {found} of {self.namespace} do not end")
            _signal(found, signal.SIGKILL)
            time.sleep(0.05)

    def stall(self) -> None:
        """Stop all processes; their connections stay. Twice, for those that were just being started."""
        for _ in range(2):
            _signal(self.processes(), signal.SIGSTOP)

    def go_on(self) -> None:
        """Let stalled processes go on."""
        _signal(self.processes(), signal.SIGCONT)

    def cut_off(self) -> None:
        """Take its link down: nothing comes in and nothing goes out, and nobody is told."""
        _ip("link", "set", self.namespace, "down")

    def join(self) -> None:
        """Put its link up."""
        _ip("link", "set", self.namespace, "up")


@dataclass(frozen=True)
class Network:
    """Machines, and the address at which servers of this machine are reached by them."""

    host: str
    machines: Sequence[Machine]


def check_available() -> None:
    """Raise `UnavailableError` where this machine can have no networks of its own."""
    if os.geteuid() != 0:
        raise UnavailableError("only root can make network namespaces")
    if shutil.which("ip") is None:
        raise UnavailableError("there is no `ip` to make network namespaces with (Debian: apt-get install iproute2)")
    probe = f"{_PREFIX}{os.getpid()}b"
    try:
        try:
            _ip("netns", "add", probe)
            _ip("link", "add", probe, "type", "bridge")
        finally:
            _remove(os.getpid())
    except NetworkError as error:
        raise UnavailableError(f"network namespaces cannot be made: {error}") from None


@contextmanager
def network(machines: int) -> Iterator[Network]:
    """Make a network; at its end all processes of its machines are killed. One at a time in a process.

    Raises `NetworkError`.
    """
    _remove_stale()
    subnet = _free_subnet()
    bridge = f"{_PREFIX}{os.getpid()}b"
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("address", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        made = [_add_machine(bridge, number, f"{subnet}.{number + 10}") for number in range(machines)]
        yield Network(f"{subnet}.1", made)
    finally:
        _remove(os.getpid())


def _add_machine(bridge: str, number: int, address: str) -> Machine:
    name = f"{_PREFIX}{os.getpid()}m{number}"
    _ip("netns", "add", name)
    _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", name, "master", bridge, "up")
    for setting in (("address", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
        _ip("-n", name, *setting)
    _ip("-n", name, "link", "set", "lo", "up")
    return Machine(name, address)


def _free_subnet() -> str:
    taken = {each["local"] for link in _json("address") for each in link.get("addr_info", ()) if "local" in each}
    for number in range(256):
        subnet = f"{_ADDRESSES}.{(os.getpid() + number) % 256}"
        if not any(address.startswith(f"{subnet}.") for address in taken):
            return subnet
    raise NetworkError(f"all networks of {_ADDRESSES}.0.0/16 are taken")


def _remove_stale() -> None:
    """Remove what processes have left that are gone."""
    names = [each["name"] for each in _json("netns")] + [each["ifname"] for each in _json("link")]
    owners = {int(found.group(1)) for name in names if (found := _OURS.match(name))}
    for owner in owners - {os.getpid()}:
        try:
            os.kill(owner, 0)
        except ProcessLookupError:
            with suppress(NetworkError):  # another process may be removing the same
                _remove(owner)


def _remove(owner: int) -> None:
    """Remove all that a process has made, which may be a part of it only."""
    own = re.compile(rf"{_PREFIX}{owner}[bm]")
    for each in _json("netns"):
        if own.match(each["name"]):
            Machine(each["name"], "").kill()
            _ip("netns", "delete", each["name"])
    for each in _json("link"):
        if own.match(each["ifname"]):
            with suppress(NetworkError):  # a link goes together with its other end, a moment after the namespace
                _ip("link", "delete", each["ifname"])


def _signal(processes: Sequence[int], number: signal.Signals) -> None:
    for each in processes:
        with suppress(ProcessLookupError):
            os.kill(each, number)


def _is_zombie(process: int) -> bool:
    """Return whether a process has ended, and only its parent has not noticed."""
    try:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _json(what: str) -> list[dict[str, Any]]:
    """Return what there is of a kind, as `ip` lists it: nothing at all where there is none."""
    found: list[dict[str, Any]] = json.loads(_ip("-json", what, "list") or "[]")
    return found


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
