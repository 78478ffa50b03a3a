"""The DNS of a cluster for tests: a service's name has the addresses of its pods that are ready.

So every service is as a headless one, and its port has to be that of its pods: there is no kube-proxy.
"""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

_PORT = 53
_HEADER = struct.Struct("!6H")
_ANSWERED, _UNKNOWN = 0x8580, 0x8583
_A, _IN = 1, 1


def serve(address: str, client: "ApiClient") -> socket.socket:
    """Answer at a local address until the socket that is returned is closed."""
    from kubernetes.client import DiscoveryV1Api

    discovery = DiscoveryV1Api(client)

    def addresses(service: str, namespace: str) -> list[str] | None:
        selector = f"kubernetes.io/service-name={service}"
        slices = discovery.list_namespaced_endpoint_slice(namespace, label_selector=selector).items
        endpoints = [endpoint for each in slices for endpoint in each.endpoints or []]
        ready = [address for each in endpoints if each.conditions.ready is not False for address in each.addresses]
        return ready if slices else None

    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listening.bind((address, _PORT))
    threading.Thread(target=_answer, args=(listening, addresses), name="names", daemon=True).start()
    return listening


def resolv_conf(address: str, namespace: str) -> str:
    """Return what a pod's /etc/resolv.conf says."""
    return (
        f"nameserver {address}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    )


def _answer(listening: socket.socket, addresses: Callable[[str, str], list[str] | None]) -> None:
    with suppress(OSError):  # closed at the end
        while True:
            query, sender = listening.recvfrom(512)
            threading.Thread(target=_answer_one, args=(listening, query, sender, addresses), daemon=True).start()


def _answer_one(
    listening: socket.socket,
    query: bytes,
    sender: tuple[str, int],
    addresses: Callable[[str, str], list[str] | None],
) -> None:
    labels, at = [], _HEADER.size
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode().lower())
        at += 1 + length
    (kind,) = struct.unpack_from("!H", query, at + 1)
    question = query[_HEADER.size : at + 5]
    found = addresses(labels[0], labels[1]) if labels[2:] == ["svc", "cluster", "local"] else None
    listed = found if found and kind == _A else []
    (number,) = struct.unpack_from("!H", query)
    answer = _HEADER.pack(number, _UNKNOWN if found is None else _ANSWERED, 1, len(listed), 0, 0) + question
    for each in listed:  # the name is that of the question, at offset 12; nobody is to keep it
        answer += struct.pack("!HHHIH", 0xC00C, _A, _IN, 0, 4) + socket.inet_aton(each)
    with suppress(OSError):
        listening.sendto(answer, sender)
