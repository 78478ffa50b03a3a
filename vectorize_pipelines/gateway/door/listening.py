"""Where a server may listen, and the metrics port: what `vectorize serve` looks at before anything starts.

It stays alive beside the server, and imports no web framework.
"""

import socket
from ipaddress import ip_address

from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.gateway.door.tokens import Tokens
from vectorize_pipelines.settings import GatewaySettings, Settings

_BACKLOG = 128


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


def bind_metrics(settings: GatewaySettings) -> socket.socket | None:
    """Return a socket that listens at the metrics port; None where there is to be none.

    Raises `SettingsError` where the port is taken.
    """
    if settings.metrics_port is None:
        return None
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.metrics_port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"gateway.metrics_port (VECTORIZE_GATEWAY__METRICS_PORT): port {settings.metrics_port} of {settings.host} "
            f"cannot be used: {reason}; choose another one, or null for none"
        ) from None
