"""The addresses a server may listen on, and its sockets. `vectorize serve` and `cli.web_server` look here first.

`vectorize serve` stays alive beside the server, so nothing here imports a web framework.
"""

import socket
from ipaddress import ip_address

from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.gateway.door.tokens import Tokens
from vectorize_pipelines.settings import GatewaySettings, Settings

#: Connections that wait until the server takes them; as many as uvicorn itself lets wait.
_BACKLOG = 2048


def is_loopback(host: str) -> bool:
    """Return whether an address, or a name, is certainly reached from this machine only."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(settings: Settings, tokens: Tokens) -> None:
    """Refuse to serve the network without tokens, or with tokens that all on the way can read.

    Raises `SettingsError`, and `StateError` where the tokens cannot be read.
    """
    gateway = settings.gateway
    if is_loopback(gateway.host):
        return
    if not tokens.current():
        raise SettingsError(
            f"gateway.host: {gateway.host} is reached by other machines, and there is no token, so that all of "
            "them could do everything: make one with `vectorize tokens create NAME --scope admin`, or listen at "
            "127.0.0.1"
        )
    if gateway.tls_certificate is None and not gateway.plain_http:
        raise SettingsError(
            f"gateway.host: {gateway.host} is reached by other machines, and without TLS everybody on the way can read "
            "the tokens: set gateway.tls_certificate and gateway.tls_key; or, where a proxy in front has TLS, "
            "gateway.plain_http: true"
        )


def bind(host: str, port: int) -> socket.socket:
    """Return a socket for a server, which listens. Raises `SettingsError` where the port is taken or is none."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        # Until somebody listens, any process that sets SO_REUSEADDR can take the same port.
        bound.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"port {port} of {host} cannot be used: {reason}") from None
    return bound


def bind_metrics(settings: GatewaySettings) -> socket.socket | None:
    """Return the same for the metrics port; None where there is to be none. Raises `SettingsError`."""
    if settings.metrics_port is None:
        return None
    try:
        return bind(settings.host, settings.metrics_port)
    except SettingsError as error:
        raise SettingsError(
            f"gateway.metrics_port (VECTORIZE_GATEWAY__METRICS_PORT): {error}; choose another one, or null for none"
        ) from None
