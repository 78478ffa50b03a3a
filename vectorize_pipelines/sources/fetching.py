"""Fetching of the content that a request names by URI: only from where the installation allows, and bounded.

`http(s)` goes through `core.guarded_http`, `data:` is read where it stands, a path or `file:` is read below the allowed
folders, and other schemes that are allowed go through fsspec with the installation's own credentials.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Self
from urllib.parse import unquote, unquote_to_bytes, urljoin, urlsplit

from vectorize_pipelines.core.base64_text import decode_base64
from vectorize_pipelines.core.guarded_http import (
    PORTS,
    Answer,
    ContentTooLargeError,
    Deadline,
    HttpTarget,
    PrivateAddressError,
    exchange,
    parse,
)
from vectorize_pipelines.core.urls import scheme_of
from vectorize_pipelines.errors import ItemError, RefusedUriError, UnreadableFileError
from vectorize_pipelines.settings import UriSettings
from vectorize_pipelines.sources.content import read_below, read_content

#: Algorithms of checksums, and how many hexadecimal digits each has.
CHECKSUMS = {"sha256": 64, "sha384": 96, "sha512": 128, "blake2b": 128}
_NAME = re.compile(r";\s*(?:file)?name=\"?([^\";]*)", re.IGNORECASE)
#: Schemes whose URIs name a bucket of a service that the installation has chosen, not a host to connect to.
OF_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "hf", "github", "memory")
_REDIRECTS = (301, 302, 303, 307, 308)
#: Answers after which the same request may succeed another time, beside those of 500 and above.
_PASSING = (408, 425, 429)
_HEADERS = {"User-Agent": "vectorize-pipelines", "Accept": "*/*"}


class MissingContentError(UnreadableFileError):
    """Content that does not exist, or that the server says we may not have."""

    retryable = False


class ContentMismatchError(ItemError):
    """The content is not the one that was announced: another checksum or another size."""


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """The places from which content is fetched, and how much of it; see `UriSettings`."""

    allowed_schemes: frozenset[str]
    allowed_hosts: tuple[str, ...]
    allowed_roots: tuple[Path, ...]
    allow_private: bool
    max_bytes: int
    timeout_seconds: float
    max_redirects: int

    @classmethod
    def of(cls, settings: UriSettings) -> Self:
        """Return the policy that the settings say."""
        return cls(
            allowed_schemes=frozenset(scheme.lower() for scheme in settings.allowed_schemes),
            allowed_hosts=tuple(host.lower() for host in settings.allowed_hosts),
            allowed_roots=tuple(Path(root).expanduser().absolute() for root in settings.allowed_roots),
            allow_private=settings.allow_private,
            max_bytes=settings.max_bytes,
            timeout_seconds=settings.timeout_seconds,
            max_redirects=settings.max_redirects,
        )


@dataclass(frozen=True, slots=True)
class Fetched:
    """A content, and what its carrier says of it.

    media_type  as HTTP's `Content-Type` or the `data:` URI has it, with its parameters; None where nobody says
    name        the name that the server gives it (`Content-Disposition`), else the path of the address that it was
                found at in the end, without its query; that of a `data:` URI is its parameter `name`, or empty
    """

    content: bytes
    media_type: str | None
    name: str


def fetch(
    uri: str, policy: FetchPolicy, *, limit: int | None = None, checksum: str | None = None, size: int | None = None
) -> bytes:
    """Return the content behind a URI; otherwise as `fetch_described`."""
    return fetch_described(uri, policy, limit=limit, checksum=checksum, size=size).content


def fetch_described(
    uri: str, policy: FetchPolicy, *, limit: int | None = None, checksum: str | None = None, size: int | None = None
) -> Fetched:
    """Return the content behind a URI, of at most `limit` bytes (None: what the policy allows), and what it is.

    `checksum` is `sha256:…` or another of `CHECKSUMS`, in hexadecimal; `size` is in bytes; both are of the content as
    it is returned. Raises `RefusedUriError`, `ContentTooLargeError`, `ContentMismatchError`, `MissingContentError`,
    and, `retryable`, `UnreadableFileError`.
    """
    limit = policy.max_bytes if limit is None else min(limit, policy.max_bytes)
    expected = None if checksum is None else _parse_checksum(checksum)
    if size is not None and size > limit:
        raise ContentTooLargeError(f"is {size:,} bytes; {limit:,} are allowed")
    fetched = _read(uri, policy, limit)
    content = fetched.content
    if len(content) > limit:
        raise ContentTooLargeError(f"is more than the {limit:,} bytes that are allowed")
    if size is not None and len(content) != size:
        raise ContentMismatchError(f"is {len(content):,} bytes, not the {size:,} that were announced")
    if expected is not None:
        algorithm, digest = expected
        if hashlib.new(algorithm, content).hexdigest() != digest:
            raise ContentMismatchError(f"has another {algorithm} than the one announced: the content has changed")
    return fetched


def _read(uri: str, policy: FetchPolicy, limit: int) -> Fetched:
    if "\x00" in uri:
        raise RefusedUriError("an address with a NUL character is not accepted")
    scheme = scheme_of(uri) or "file"
    if scheme == "data":
        return _read_data(uri, limit)
    if scheme == "file":
        path = _local_path(uri)
        return Fetched(_read_local(path, policy, limit), None, str(path))
    if scheme not in policy.allowed_schemes:
        raise RefusedUriError(_not_allowed(f"the scheme {scheme[:20]}", "schemes"))
    if scheme in PORTS:
        return _read_http(uri, policy, limit)
    return Fetched(_read_fsspec(uri, policy, limit), None, _path_of(uri))


def _path_of(uri: str) -> str:
    return re.split(r"[?#]", uri, maxsplit=1)[0]


def _read_data(uri: str, limit: int) -> Fetched:
    head, comma, data = uri.partition(",")
    if not comma:
        raise RefusedUriError("a data: URI has a comma before its data")
    if len(data) > 3 * limit + 4:
        raise ContentTooLargeError(f"is more than the {limit:,} bytes that are allowed")
    media_type, in_base64 = _described_by(head.partition(":")[2])
    found = _NAME.search(media_type)
    name = "" if found is None else unquote(found[1])
    content = unquote_to_bytes(data)
    if not in_base64:
        # What stands there as text was put into UTF-8 just now, whatever the URI says.
        is_utf8 = not data.isascii()
        return Fetched(content, f"{media_type.partition(';')[0]};charset=utf-8" if is_utf8 else media_type, name)
    try:
        return Fetched(decode_base64(content), media_type, name)
    except ValueError as error:
        raise RefusedUriError(f"its data are not base64: {error}") from None


def _described_by(head: str) -> tuple[str, bool]:
    """Return the media type that a `data:` URI has before its comma, and whether its data are base64."""
    bare, semicolon, last = head.rpartition(";")
    in_base64 = last.strip().lower() == "base64" and bool(semicolon)
    media_type = (bare if in_base64 else head).strip()
    return (f"text/plain{media_type}" if not media_type or media_type.startswith(";") else media_type), in_base64


def _read_http(uri: str, policy: FetchPolicy, limit: int) -> Fetched:
    deadline = Deadline(policy.timeout_seconds)
    for _ in range(policy.max_redirects + 1):
        target = _allowed(uri, policy)
        try:
            answer = exchange(
                "GET", target, headers=_HEADERS, limit=limit, allow_private=policy.allow_private, deadline=deadline
            )
        except PrivateAddressError as error:
            raise RefusedUriError(
                f"{error}; where it is meant, set uris.allow_private (VECTORIZE_URIS__ALLOW_PRIVATE=true)"
            ) from None
        if answer.status in _REDIRECTS and "location" in answer.headers:
            uri = _redirected(uri, answer.headers["location"])
        else:
            content = _success(answer)
            return Fetched(content, answer.headers.get("content-type"), _name_of(answer, uri))
    raise RefusedUriError(f"is redirected more than {policy.max_redirects} times")


def _redirected(uri: str, location: str) -> str:
    try:
        return urljoin(uri, location)
    except ValueError:  # whose own message may repeat a password
        raise RefusedUriError("is redirected to what is no address: its host cannot be read") from None


def _allowed(uri: str, policy: FetchPolicy) -> HttpTarget:
    """Return the target that a URI names, checked again at every redirect. Raises `RefusedUriError`."""
    target = parse(uri)
    if target.scheme not in policy.allowed_schemes:
        raise RefusedUriError(_not_allowed(f"the scheme {target.scheme}", "schemes"))
    _check_host(target.host, policy)
    return target


def _check_host(host: str, policy: FetchPolicy) -> None:
    for allowed in policy.allowed_hosts:
        if host == allowed or (allowed.startswith("*.") and host.endswith(allowed[1:])):
            return
    if policy.allowed_hosts:
        raise RefusedUriError(_not_allowed(f"the host {host}", "hosts"))


def _success(answer: Answer) -> bytes:
    if answer.status == 200:
        return answer.body
    if answer.status >= 500 or answer.status in _PASSING:
        raise UnreadableFileError(f"the server answered {answer.status}")
    raise MissingContentError(f"the server answered {answer.status}")


def _name_of(answer: Answer, uri: str) -> str:
    """Return the name of a file that a server sends, or else the address without its query."""
    described = Message()
    described["Content-Disposition"] = answer.headers.get("content-disposition", "")
    try:
        return described.get_filename() or _path_of(uri)
    except (ValueError, LookupError):  # of an encoding that there is not, and what else a server may send
        return _path_of(uri)


def _read_fsspec(uri: str, policy: FetchPolicy, limit: int) -> bytes:
    if "::" in uri:
        raise RefusedUriError("an address made of several is not accepted")
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise RefusedUriError("is no address: its host cannot be read") from None
    if not uri[len(parts.scheme) :].startswith("://"):
        raise RefusedUriError(f"an address of the scheme {parts.scheme} begins with {parts.scheme}://")
    if ":" in parts.netloc.rpartition("@")[0]:
        raise RefusedUriError("an address with a password in it is not accepted")
    if parts.scheme.lower() not in OF_BUCKETS and not policy.allowed_hosts:
        raise RefusedUriError(
            f"an address of the scheme {parts.scheme} names a host, which fsspec connects to unchecked: name those "
            "that may be asked in uris.allowed_hosts (VECTORIZE_URIS__ALLOWED_HOSTS)"
        )
    _check_host(parts.netloc.lower(), policy)
    # fsspec knows schemes in small letters only.
    return read_content(f"{parts.scheme}{uri[len(parts.scheme) :]}", limit + 1)


def _local_path(uri: str) -> Path:
    if not scheme_of(uri):
        return Path(uri)
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise RefusedUriError("is no address: its host cannot be read") from None
    if parts.netloc not in ("", "localhost"):
        host = parts.netloc.rpartition("@")[2]
        raise RefusedUriError(f"a file: URI names a file of this machine, not of {host[:100]}")
    return Path(unquote(parts.path))


def _read_local(path: Path, policy: FetchPolicy, limit: int) -> bytes:
    """Read a regular file below an allowed root, links followed where they stay below one."""
    if not policy.allowed_roots:
        raise RefusedUriError(_not_allowed("a local file", "roots"))
    if not path.is_absolute() or "\x00" in str(path):
        raise RefusedUriError("a local file is named by its absolute path")
    try:
        found = below_roots(path, policy.allowed_roots)
        if found is not None:
            return read_below(*found, limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingContentError("there is no such file") from None
    except OSError as error:
        raise UnreadableFileError(f"cannot be read: {error.strerror or error}") from None
    raise RefusedUriError(_not_allowed("what lies there", "roots"))


def below_roots(path: Path, roots: Sequence[Path]) -> tuple[Path, tuple[str, ...]] | None:
    """Return the root that a path ends below once links are followed, and the way there; None for a path outside.

    Outside of the roots nothing is looked at, not even where a link there would lead: the answer would tell of it.
    """
    wanted = Path(os.path.normpath(path))
    real_roots = [Path(os.path.realpath(root)) for root in roots]
    if not any(wanted.is_relative_to(os.path.normpath(root)) for root in (*roots, *real_roots)):
        return None
    resolved = Path(os.path.realpath(wanted))
    return next(
        ((root, resolved.relative_to(root).parts) for root in real_roots if resolved.is_relative_to(root)), None
    )


def _parse_checksum(text: str) -> tuple[str, str]:
    algorithm, _, digest = text.strip().lower().partition(":")
    if not re.fullmatch(r"[0-9a-f]+", digest) or CHECKSUMS.get(algorithm) != len(digest):
        known = ", ".join(f"{name}:… ({digits} digits)" for name, digits in CHECKSUMS.items())
        raise ContentMismatchError(f"the checksum {text[:150]!r} is none of {known}")
    return algorithm, digest


def _not_allowed(what: str, setting: str) -> str:
    return f"{what} is not among uris.allowed_{setting} (VECTORIZE_URIS__ALLOWED_{setting.upper()})"
