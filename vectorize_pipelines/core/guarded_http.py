"""HTTP to addresses that strangers name: the URI of a request's content, the URL of a callback.

What is checked is the very address that is connected to, so a name that resolves to another address a moment later
gains nothing. The limit of time is for the whole exchange, however slowly a server drips. Proxies are not used, since
a proxy would resolve the name by itself.
"""

import http.client
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import quote, urlsplit

from vectorize_pipelines.core.addresses import Kind, destinations, special_range
from vectorize_pipelines.errors import ItemError, RefusedUriError, UnreadableFileError

CHUNK_BYTES = 64 * 1024
PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


class ContentTooLargeError(ItemError):
    """More bytes than are allowed, as sent or once decompressed; what was read of them is thrown away."""


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """A URL that has been taken apart. `path` is what is sent to the server, with the query."""

    scheme: str
    host: str
    port: int
    path: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer. `body` is decompressed, and empty unless the status is 200 and a body was asked for."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Deadline:
    """A moment that everything has to be done by."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds that are left. Raises `UnreadableFileError` where there are none."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise self.missed()
        return left

    def missed(self) -> UnreadableFileError:
        """Return what to raise when it has passed."""
        return UnreadableFileError(f"did not answer in full within {self.seconds:g} s")


class PrivateAddressError(RefusedUriError):
    """An address that would be asked if private ones might be: who calls knows the setting."""


def parse(url: str) -> HttpTarget:
    """Take an http or https URL apart. Raises `RefusedUriError` where two programs could read it differently."""
    if any(character <= " " or character == "\x7f" for character in url):
        raise RefusedUriError("an address with blanks or control characters is not accepted; percent-encode them")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # whose own message may repeat a password
        raise RefusedUriError("is no address: its host or its port cannot be read") from None
    if parts.scheme not in PORTS:
        raise RefusedUriError(f"the scheme {parts.scheme or 'none'} is not http or https")
    if "@" in parts.netloc:
        raise RefusedUriError("an address with a user or password in it is not accepted")
    if port == 0:
        raise RefusedUriError("there is no port 0")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        path += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]")
    return HttpTarget(parts.scheme, _host(host, parts.netloc.startswith("[")), port or PORTS[parts.scheme], path)


def exchange(
    method: str,
    target: HttpTarget,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    limit: int,
    allow_private: bool,
    deadline: Deadline,
) -> Answer:
    """Make one request; redirects are not followed. Of the answer's body at most `limit` bytes are taken; 0: none.

    Raises `RefusedUriError` (`PrivateAddressError`) for an address that must not be asked, `ContentTooLargeError`, and
    `UnreadableFileError` for whatever goes wrong on the way.
    """
    connection = _Connection(target, allow_private, deadline)
    try:
        connection.request(method, target.path, body, {"Accept-Encoding": "identity", **headers})
        response = connection.getresponse()
        content = _content(response, limit) if limit and response.status == http.HTTPStatus.OK else b""
        connection.raise_if_cut_off()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)
    except UnreadableFileError:
        connection.raise_if_cut_off()
        raise
    except TimeoutError:
        raise deadline.missed() from None
    except (OSError, http.client.HTTPException, ValueError, zlib.error) as error:
        connection.raise_if_cut_off()
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, http.client.HTTPException):  # its message is what the server sent, whatever that is
            reason = f"the answer is not HTTP as it should be ({type(error).__name__})"
        raise UnreadableFileError(f"cannot be had from {target.host}: {reason[:300]}") from None
    finally:
        connection.finish()


def refusal(address: str, allow_private: bool) -> str | None:
    """Return why an IP address must not be connected to; None where it may."""
    for each in destinations(ipaddress.ip_address(address.partition("%")[0])):
        found = special_range(each)
        if found is not None and not (allow_private and found.kind is Kind.PRIVATE):
            leads = "" if str(each) == address else f" leads to {each}, which"
            return f"{address}{leads} is {found.kind} ({found.name})"
    return None


def _host(host: str, in_brackets: bool) -> str:
    """Return a host as it is resolved and sent. Raises `RefusedUriError`."""
    if in_brackets or ":" in host:
        if "%" in host:
            raise RefusedUriError(f"{host[:100]} names a network of this machine")
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError:
            raise RefusedUriError(f"{host[:100]} is no host") from None
    try:
        name = host.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError:
        raise RefusedUriError(f"{host[:100]} is no host") from None
    if not _HOST_NAME.fullmatch(name):
        raise RefusedUriError(f"{host[:100]} is no host")
    if _is_number(name):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise RefusedUriError(f"{name} is an IP address in an unusual form; write it as 192.0.2.1") from None
    return name


def _is_number(name: str) -> bool:
    """Return whether the resolver takes it for an IPv4 address: decimal, octal, hexadecimal, of up to four parts."""
    return re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)", name.rpartition(".")[2]) is not None


class _Connection(http.client.HTTPConnection):
    """A connection to checked addresses only, cut off when the deadline passes, whatever it waits for."""

    def __init__(self, target: HttpTarget, allow_private: bool, deadline: Deadline):
        super().__init__(target.host, target.port)
        self._target = target
        self._allow_private = allow_private
        self._deadline = deadline
        self._response: http.client.HTTPResponse | None = None
        self._watched: socket.socket | None = None
        self._timer: threading.Timer | None = None
        self._cut_off = threading.Event()

    def connect(self) -> None:
        self.sock = self._connected()
        # A copy: TLS takes the socket over, and shutting down any copy ends them all.
        self._watched = self.sock.dup()
        self._timer = threading.Timer(self._deadline.remaining(), self._end)
        self._timer.daemon = True
        self._timer.start()
        if self._target.scheme == "https":
            self.sock = _tls().wrap_socket(self.sock, server_hostname=self._target.host)

    def getresponse(self) -> http.client.HTTPResponse:
        self._response = super().getresponse()
        return self._response

    def raise_if_cut_off(self) -> None:
        """Raise `UnreadableFileError` once the deadline has passed: what was read may have ended early."""
        if self._cut_off.is_set():
            raise self._deadline.missed()

    def finish(self) -> None:
        """End everything. Not `close`, which http.client itself calls while an answer is still being read."""
        self.close()
        if self._response is not None:
            self._response.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        if self._watched is not None:
            self._watched.close()

    def _end(self) -> None:
        self._cut_off.set()
        if self._watched is not None:
            try:
                self._watched.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # the server was faster

    def _connected(self) -> socket.socket:
        found = _resolve(self._target, self._deadline)
        for *_, place in found:
            reason = refusal(str(place[0]), self._allow_private)
            if reason is not None:
                said = reason.replace(f"{self._target.host} is ", "it is ", 1)
                is_private = refusal(str(place[0]), not self._allow_private) is None
                kind = PrivateAddressError if is_private else RefusedUriError
                raise kind(f"{self._target.host} is not asked: {said}")
        failure: OSError | None = None
        for family, kind, protocol, _, place in found:
            one = socket.socket(family, kind, protocol)
            one.settimeout(self._deadline.remaining())
            try:
                one.connect(place)
            except OSError as error:
                one.close()
                failure = error
            else:
                return one
        raise failure or OSError("its name has no address")


#: Family, kind, protocol, canonical name, and what `connect` takes, which begins with the IP address.
_AddressInfo: TypeAlias = tuple[Any, ...]


def _resolve(target: HttpTarget, deadline: Deadline) -> list[_AddressInfo]:
    """Resolve in a thread of its own, because the resolver knows no limit of time."""
    answers: queue.SimpleQueue[list[_AddressInfo] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(list(socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            answers.put(OSError(f"its name cannot be resolved ({error})"))

    threading.Thread(target=ask, name="vectorize-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=deadline.remaining())
    except queue.Empty:
        raise deadline.missed() from None
    if isinstance(answer, OSError):
        raise answer
    return answer


@lru_cache(1)
def _tls() -> ssl.SSLContext:
    """Return the machine's authorities, or those that SSL_CERT_FILE names, and certifi's: a small image has none."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _content(response: http.client.HTTPResponse, limit: int) -> bytes:
    length = response.length
    if length is not None and length > limit and "Content-Encoding" not in response.headers:
        raise ContentTooLargeError(f"is {length:,} bytes; {limit:,} are allowed")
    content = bytearray()
    for part in _decoded(response, limit):
        content += part
        if len(content) > limit:
            raise ContentTooLargeError(f"is more than the {limit:,} bytes that are allowed")
    if response.length:  # an answer that is cut short is no error to http.client
        raise UnreadableFileError(f"was cut short: {response.length:,} bytes of {length:,} are missing")
    return bytes(content)


def _decoded(response: http.client.HTTPResponse, limit: int) -> Iterator[bytes]:
    """Yield the body in parts, none of them larger than `limit` by more than a byte, however well it was compressed."""
    encoding = (response.headers.get("Content-Encoding") or "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise UnreadableFileError(f"came with the encoding {encoding[:50]}, which was not asked for")
    parts = iter(lambda: response.read(CHUNK_BYTES), b"")
    if encoding == "identity":
        yield from parts
        return
    decompressor = _decompressor()
    for part in parts:
        rest = part
        while rest:
            if decompressor.eof:  # several compressed contents, one after another, are one
                decompressor = _decompressor()
            yield decompressor.decompress(rest, limit + 1)
            rest = decompressor.unused_data if decompressor.eof else decompressor.unconsumed_tail
    if not decompressor.eof:
        raise UnreadableFileError("was cut short: its compressed content has no end")


def _decompressor() -> "zlib._Decompress":
    return zlib.decompressobj(wbits=47)  # gzip or zlib, as its head says
