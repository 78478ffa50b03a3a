"""The network of a cluster for tests: a bridge of this machine, and for each pod a network namespace with an address.

Network policies are not enforced.
"""

import ipaddress
import json
import os
import random
import socket
import subprocess
import threading
from contextlib import ExitStack, closing, suppress
from typing import Any, Self

from tests.servers.packages import UnavailableError, ensure

_TRIES = 50


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


class Network:
    """A bridge, and what is connected to it. Raises `UnavailableError` where this machine allows none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._number = 0

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise UnavailableError("network namespaces for the pods of a Kubernetes need root")
        ensure("ip", "iproute2")
        self._range = _free_range()
        self._name = f"vk{random.randrange(16**6):06x}"
        _ip("link", "add", self._name, "type", "bridge")
        self._stack.callback(_ip, "link", "delete", self._name)
        _ip("address", "add", f"{self.host}/{self._range.prefixlen}", "dev", self._name)
        _ip("link", "set", self._name, "up")
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def host(self) -> str:
        """This machine's address, as the pods reach it."""
        return str(self._range[1])

    @property
    def services(self) -> str:
        """A range for the addresses of services, which nobody reaches."""
        return "10.254.0.0/16"

    def connect(self) -> tuple[str, str]:
        """Make a network namespace; return its name and its address."""
        with self._lock:
            self._number += 1
            number = self._number
        name, address = f"{self._name}-{number}", str(self._range[number + 1])
        _ip("netns", "add", name)
        link = f"{self._name}{number}"
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", link, "master", self._name, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "address", "add", f"{address}/{self._range.prefixlen}", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "route", "add", "default", "via", self.host)
        return name, address

    def disconnect(self, name: str) -> None:
        """Remove a namespace of `connect`, with its link."""
        _ip("netns", "delete", name)

    def forward(self, port: int) -> int:
        """Let pods reach a port of this machine's loopback address; return the port at `host` for it."""
        listener = socket.create_server((self.host, 0))
        self._stack.callback(listener.close)
        threading.Thread(target=_accept, args=(listener, port), daemon=True).start()
        return int(listener.getsockname()[1])


def _free_range() -> ipaddress.IPv4Network:
    routes: list[dict[str, Any]] = json.loads(_ip("-json", "route"))
    taken = [ipaddress.ip_network(each["dst"]) for each in routes if each["dst"] != "default"]
    for _ in range(_TRIES):
        wanted = ipaddress.IPv4Network(f"10.{random.randrange(64, 250)}.{random.randrange(256)}.0/24")
        if not any(wanted.overlaps(each) for each in taken if each.version == 4):
            return wanted
    raise UnavailableError("no free range of private addresses was found")


def _accept(listener: socket.socket, port: int) -> None:
    with suppress(OSError):  # closed at the end
        while True:
            inside, _ = listener.accept()
            threading.Thread(target=_join, args=(inside, port), daemon=True).start()


def _join(inside: socket.socket, port: int) -> None:
    with closing(inside), suppress(OSError), socket.create_connection(("127.0.0.1", port)) as outside:
        back = threading.Thread(target=_copy, args=(outside, inside), daemon=True)
        back.start()
        _copy(inside, outside)
        back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
