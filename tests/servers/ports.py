"""Ports that nothing listens at."""

import socket


def free_ports(number: int) -> list[int]:
    """So many ports of the loopback address, all different."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
