"""Fetching what a request names by URI, from real servers and files, and refusing the rest."""

import base64
import gzip
import hashlib
import http.server
import os
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.servers.web import Web, answer, serving
from vectorize_pipelines.core import guarded_http
from vectorize_pipelines.core.guarded_http import ContentTooLargeError, parse, refusal
from vectorize_pipelines.errors import ItemError, RefusedUriError, UnreadableFileError
from vectorize_pipelines.settings import UriSettings
from vectorize_pipelines.sources.fetching import (
    ContentMismatchError,
    FetchPolicy,
    MissingContentError,
    fetch,
    fetch_described,
)

STRICT = FetchPolicy.of(UriSettings())
#: The servers of these tests are on this machine.
LOCAL = replace(STRICT, allow_private=True, timeout_seconds=20.0)
QUICK = replace(LOCAL, timeout_seconds=0.5)


def _serve(handler: Any) -> None:
    """`/status/404`, `/body/…`, `/to?URL`, and servers that behave badly."""
    kind, _, rest = handler.path[1:].partition("/")
    if handler.path.startswith("/to?"):
        answer(handler, 302, location=handler.path[4:])
    elif kind == "status":
        answer(handler, int(rest))
    elif kind == "count":
        answer(handler, 302, location=f"/count/{int(rest) - 1}" if int(rest) else "/body/end")
    elif kind == "endless":
        answer(handler, content_length="")
        while True:
            handler.wfile.write(b"x" * 100_000)
    elif kind == "drip":
        answer(handler, content_length="1000000")
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.02)
    elif kind == "drip-headers":
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.02)
    elif kind == "silent":
        time.sleep(5)
    elif kind == "bomb":
        packed = gzip.compress(b"\0" * 50_000_000)
        answer(handler, body=packed, content_encoding="gzip")
    elif kind == "gzip":
        answer(handler, body=gzip.compress(b"first ") + gzip.compress(b"second"), content_encoding="gzip")
    elif kind == "gzip-cut":
        answer(handler, body=gzip.compress(os.urandom(1000))[:-200], content_encoding="gzip")
    elif kind == "brotli":
        answer(handler, body=b"?", content_encoding="br")
    elif kind == "cut":
        answer(handler, body=b"half", content_length="8")
    elif kind == "nonsense":
        handler.wfile.write(b"\x00\xff nonsense\r\n\r\n")
    elif kind == "typed":
        answer(handler, body=b"x", content_type=unquote(rest.partition("?")[0]))
    elif kind == "named":
        answer(handler, body=b"x", content_disposition=f"attachment; filename*=UTF-8''{rest}")
    elif kind == "announced":
        answer(handler, content_length="999999999999")
    else:
        answer(handler, body=rest.encode())


@pytest.fixture(scope="module")
def web() -> Any:
    with serving(_serve) as server:
        yield server


def test_a_content_is_fetched(web: Web) -> None:
    assert fetch(web.url("/body/abc#fragment"), LOCAL) == b"abc"
    assert fetch(web.url("/body/b%20c?q=1 2".replace(" ", "%20")), LOCAL) == b"b%20c?q=1%202"
    assert fetch(web.url("/body/ü"), LOCAL) == b"%C3%BC"
    assert fetch(web.url("/body/"), LOCAL) == b""


def test_redirects_are_followed_some_times(web: Web) -> None:
    assert fetch(web.url("/count/4"), LOCAL) == b"end"
    with pytest.raises(RefusedUriError, match="more than 5 times"):
        fetch(web.url("/count/5"), LOCAL)


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (404, MissingContentError, False),
        (403, MissingContentError, False),
        (204, MissingContentError, False),
        (304, MissingContentError, False),
        (429, UnreadableFileError, True),
        (500, UnreadableFileError, True),
        (503, UnreadableFileError, True),
    ],
)
def test_answers_without_content(web: Web, status: int, kind: type[ItemError], retryable: bool) -> None:
    with pytest.raises(kind, match=f"answered {status}") as caught:
        fetch(web.url(f"/status/{status}"), LOCAL)
    assert caught.value.retryable is retryable


@pytest.mark.parametrize("path", ["/endless/", "/bomb/", "/announced/", "/body/123456"])
def test_what_is_too_large_is_not_read_to_its_end(web: Web, path: str) -> None:
    with pytest.raises(ContentTooLargeError, match="allowed"):
        fetch(web.url(path), LOCAL, limit=5)


def test_a_content_of_just_the_limit(web: Web) -> None:
    assert fetch(web.url("/body/12345"), LOCAL, limit=5) == b"12345"
    assert fetch(web.url("/gzip/"), LOCAL, limit=12) == b"first second"
    with pytest.raises(ContentTooLargeError):
        fetch(web.url("/gzip/"), LOCAL, limit=11)
    with pytest.raises(ContentTooLargeError):
        fetch(web.url("/body/12345"), replace(LOCAL, max_bytes=4), limit=5)


@pytest.mark.parametrize("path", ["/drip/", "/drip-headers/", "/silent/", "/to?/to?/drip/"])
def test_a_server_that_takes_too_long_is_left(web: Web, path: str) -> None:
    with pytest.raises(UnreadableFileError, match=r"within 0\.5 s") as caught:
        fetch(web.url(path), QUICK)
    assert caught.value.retryable


def test_a_name_server_that_takes_too_long_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(30) and [])
    with pytest.raises(UnreadableFileError, match=r"within 0\.5 s"):
        fetch("http://slow.example/", QUICK)
    release.set()


@pytest.mark.parametrize("path", ["/gzip-cut/", "/brotli/", "/cut/", "/nonsense/"])
def test_answers_that_are_broken(web: Web, path: str) -> None:
    with pytest.raises(UnreadableFileError) as caught:
        fetch(web.url(path), LOCAL)
    assert caught.value.retryable


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UnreadableFileError, match="refused"):
            fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/", LOCAL)


def test_checksum_and_size_are_compared(web: Web) -> None:
    uri, content = web.url("/body/abc"), b"abc"
    for name in ("sha256", "sha384", "sha512", "blake2b"):
        assert fetch(uri, LOCAL, checksum=f"{name}:{hashlib.new(name, content).hexdigest().upper()}") == content
    assert fetch(uri, LOCAL, size=3) == content
    with pytest.raises(ContentMismatchError, match="another sha256"):
        fetch(uri, LOCAL, checksum=f"sha256:{'0' * 64}")
    with pytest.raises(ContentMismatchError, match="is 3 bytes, not the 4"):
        fetch(uri, LOCAL, size=4)
    asked = len(web.asked)
    for checksum in ("md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:12", "abc", ""):
        with pytest.raises(ContentMismatchError, match="is none of"):
            fetch(uri, LOCAL, checksum=checksum)
    with pytest.raises(ContentTooLargeError):
        fetch(uri, LOCAL, size=10**12)
    assert len(web.asked) == asked


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "LOCALHOST.", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "①②⑦.⓪.⓪.①"],
)
def test_this_machine_is_not_asked(web: Web, host: str) -> None:
    asked = len(web.asked)
    with pytest.raises(RefusedUriError, match="private, loopback") as caught:
        fetch(web.url(host=host), STRICT)
    assert not caught.value.retryable
    assert len(web.asked) == asked


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0x7f.1", "017700000001", "127.1", "127.0.0.01", "0"])
def test_unusual_forms_of_addresses_are_refused(web: Web, host: str) -> None:
    with pytest.raises(RefusedUriError, match="unusual form"):
        fetch(web.url(host=host), LOCAL)


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "192.0.2.1", "198.18.0.1", "240.0.0.1",
        "255.255.255.255", "fc00::1", "fec0::1", "2001:db8::1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1",
        "2002:0a00:0001::1", "::10.0.0.1", "2001:0:0a00:1::1",
    ],
)  # fmt: skip
def test_private_addresses_are_refused_unless_allowed(address: str) -> None:
    assert refusal(address, allow_private=False) is not None
    if "2001:0:" not in address:
        assert refusal(address, allow_private=True) is None


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "224.0.0.1", "ff02::1", "0.0.0.0", "0.1.2.3", "::",
        "::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::", "168.63.129.16", "100.100.100.200",
        "fd00:ec2::254", "::2",
    ],
)  # fmt: skip
def test_addresses_that_no_setting_allows(address: str) -> None:
    assert refusal(address, allow_private=True) is not None


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert refusal(address, allow_private=False) is None


def _resolver(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[list[str]]]) -> None:
    """Each question of a name gets its next answer; the last one again and again."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        if host not in names:
            return list(real(host, port, **options))
        found = names[host].pop(0) if len(names[host]) > 1 else names[host][0]
        return [each for address in found for each in real(address, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_names_of_private_addresses_are_refused(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    _resolver(monkeypatch, {"inside.example": [["10.0.0.1"]], "mixed.example": [["8.8.8.8", "127.0.0.1"]]})
    for host in ("inside.example", "mixed.example"):
        with pytest.raises(RefusedUriError, match=f"{host} is not asked.*VECTORIZE_URIS__ALLOW_PRIVATE=true"):
            fetch(web.url(host=host), STRICT)
    with pytest.raises(RefusedUriError, match=r"^127\.0\.0\.1 is not asked: it is .*ALLOW_PRIVATE"):
        fetch(web.url(host="127.0.0.1"), STRICT)


def test_a_name_that_changes_its_address_after_the_check(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once: the address that was checked is the one that is connected to, here one where nobody answers."""
    _resolver(monkeypatch, {"rebound.example": [["127.9.9.9"], ["127.0.0.1"]]})
    connected: list[Any] = []
    real = socket.socket.connect

    def connect(one: socket.socket, place: Any) -> None:
        connected.append(place)
        real(one, place)

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(UnreadableFileError):
        fetch(web.url(host="rebound.example"), LOCAL)
    assert connected == [("127.9.9.9", web.port)]


def test_the_name_is_what_the_server_is_asked_for(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several addresses the next is tried where one does not answer."""
    _resolver(monkeypatch, {"shared.example": [["127.9.9.9", "127.0.0.1"]]})
    assert fetch(web.url("/body/x", host="Shared.Example"), LOCAL) == b"x"
    assert web.hosts[-1] == f"shared.example:{web.port}"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://192.168.0.1/", "private, loopback"),
        ("//[fe80::1]/", "link-local"),
        ("http://169.254.169.254/latest/meta-data/", "metadata"),
        ("file:///etc/passwd", "scheme file"),
        ("FILE:/etc/passwd", "scheme file"),
        ("s3://bucket/key", "scheme s3"),
        ("data:text/plain,abc", "scheme data"),
        ("gopher://x/", "scheme gopher"),
        ("http://other.example/", "the host other.example"),
        ("http://u:p@127.0.0.1/", "user or password"),
        ("http://[", "no address"),
        ("http://x:99999/", "no address"),
    ],
)
def test_redirects_are_checked_as_the_first_address_is(web: Web, location: str, reason: str) -> None:
    policy = replace(
        LOCAL,
        allowed_schemes=frozenset({"http", "s3", "file", "data", "gopher"}),
        allowed_hosts=("127.0.0.1", "192.168.0.1", "fe80::1", "169.254.169.254") if "other" in location else (),
        allowed_roots=(Path("/"),),
    )
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        real = guarded_http.refusal
        patch.setattr(
            guarded_http, "refusal", lambda address, _: None if address == "127.0.0.1" else real(address, False)
        )
        with pytest.raises(RefusedUriError, match=reason):
            fetch(web.url(f"/to?{location}"), policy)


def test_a_redirect_from_a_public_address_to_a_private_one(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address counts as public here, so that the strict policy is the one that judges the second."""
    real = guarded_http.refusal
    monkeypatch.setattr(
        guarded_http, "refusal", lambda address, allow: None if address == "127.0.0.1" else real(address, allow)
    )
    assert fetch(web.url("/to?/body/x"), STRICT) == b"x"
    with pytest.raises(RefusedUriError, match="private, loopback"):
        fetch(web.url(f"/to?http://127.0.0.2:{web.port}/body/x"), STRICT)


def test_only_allowed_schemes_and_hosts(web: Web) -> None:
    with pytest.raises(RefusedUriError, match="VECTORIZE_URIS__ALLOWED_SCHEMES"):
        fetch(web.url(), replace(LOCAL, allowed_schemes=frozenset({"https"})))
    for uri in ("s3://bucket/key", "ftp://x/y", "javascript:alert(1)", "C:\\x", "memory://x", "github://a:b@c/d"):
        with pytest.raises(RefusedUriError, match="ALLOWED_SCHEMES"):
            fetch(uri, STRICT)
    only = replace(LOCAL, allowed_hosts=("*.example.org", "127.0.0.1"))
    assert fetch(web.url("/body/x"), only) == b"x"
    for host in ("localhost", "example.org", "evilexample.org", "127.0.0.1.example.com", "a.example.org.evil.com"):
        with pytest.raises(RefusedUriError, match="VECTORIZE_URIS__ALLOWED_HOSTS"):
            fetch(web.url(host=host), only)


@pytest.mark.parametrize(
    "uri",
    [
        "http://", "http:///x", "http://a b/", "http://a\n/", "http://a\\@b/", "http://u@h/", "http://u:p@h/", "http://%31/",
        "http://h:0/", "http://h:x/", "http://h:-1/", "http://[::1/", "http://[::1%25eth0]/", "http://[v1.x]/", "http://a..b/",
        "http://-a/", "http:h/x", "http://\u2028/", "http://a/\x00", "http://" + "a" * 300 + "/", "http://[x]/",
    ],
)  # fmt: skip
def test_addresses_that_two_programs_could_read_differently(uri: str) -> None:
    with pytest.raises(RefusedUriError):
        fetch(uri, LOCAL)


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(), st.text().map("http://{}".format), st.text("[]:@/%.0x1aé\\?#", max_size=20).map("http://{}".format)
    )
)
def test_taking_an_address_apart_gives_a_target_or_an_error(uri: str) -> None:
    try:
        target = parse(uri)
    except RefusedUriError:
        return
    assert target.host
    assert target.path.startswith("/")
    assert target.path.isascii()
    assert target.path.isprintable()


def test_data_uris() -> None:
    assert fetch("data:,a%20b", STRICT) == b"a b"
    assert fetch(f"data:image/png;base64,{base64.b64encode(bytes(range(256))).decode()}", STRICT) == bytes(range(256))
    assert fetch("data:image/png;base64,YQ%3D%3D", STRICT) == b"a"
    for broken in ("data:nothing", "data:;base64,a*b", "data:;base64,Y"):
        with pytest.raises(RefusedUriError):
            fetch(broken, STRICT)
    with pytest.raises(ContentTooLargeError):
        fetch("data:," + "a" * 11, STRICT, limit=10)
    with pytest.raises(ContentTooLargeError):
        fetch("data:," + "a" * 1000, STRICT, limit=10)


@pytest.mark.parametrize(
    ("uri", "content", "media_type", "name"),
    [
        ("data:,a%20b", b"a b", "text/plain", ""),
        ("data:;charset=koi8-r,%C1", b"\xc1", "text/plain;charset=koi8-r", ""),
        ("DATA:text/html;charset=utf-8,%3Cp%3Ea,b", b"<p>a,b", "text/html;charset=utf-8", ""),
        ("data:text/csv,zip;town%0A0213;Bod%C3%B8", "zip;town\n0213;Bodø".encode(), "text/csv", ""),
        ("data:text/html;charset=koi8-r,<p>маяк", "<p>маяк".encode(), "text/html;charset=utf-8", ""),
        ("data:application/pdf;base64,JVBE\r\nRi0x", b"%PDF-1", "application/pdf", ""),
        ("data:application/pdf;base64,JVBE%0D%0ARi0x", b"%PDF-1", "application/pdf", ""),
        ("data:;base64,_-8", b"\xff\xef", "text/plain", ""),
        ("data:application/octet-stream;name=a%20b.csv;base64,YQ", b"a", None, "a b.csv"),
    ],
)
def test_a_data_uri_says_what_it_holds(uri: str, content: bytes, media_type: str | None, name: str) -> None:
    found = fetch_described(uri, STRICT)
    assert (found.content, found.name) == (content, name)
    assert media_type is None or found.media_type == media_type


def test_a_server_says_what_it_sends(web: Web) -> None:
    plain = fetch_described(web.url("/typed/text%2Fhtml;%20charset=koi8-r?q=a.pdf#b.md"), LOCAL)
    assert plain.media_type == "text/html; charset=koi8-r"
    assert plain.name == web.url("/typed/text%2Fhtml;%20charset=koi8-r")
    moved = fetch_described(web.url(f"/to?{web.url('/typed/text%2Fcsv')}"), LOCAL)
    assert (moved.media_type, moved.name) == ("text/csv", web.url("/typed/text%2Fcsv"))
    named = fetch_described(web.url("/named/r%C3%A9sum%C3%A9.csv"), LOCAL)
    assert named.name == "résumé.csv"
    assert fetch_described(web.url("/body/a.md"), LOCAL).media_type is None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a b.txt").write_text("inside")
    (tmp_path / "secret.txt").write_text("outside")
    (tmp_path / "root-beside").mkdir()
    (tmp_path / "root-beside" / "x").write_text("outside")
    (folder / "within").symlink_to(folder / "inner")
    (folder / "out").symlink_to(tmp_path)
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    return folder


def test_local_files_below_an_allowed_folder(root: Path) -> None:
    policy = replace(STRICT, allowed_roots=(root.parent / "other", root))
    for uri in (
        f"{root}/inner/a b.txt",
        f"file://{root}/inner/a%20b.txt",
        f"file://localhost{root}/inner/a%20b.txt",
        f"FILE:{root}/within/a%20b.txt",
        f"{root}/inner/../within/a b.txt",
    ):
        assert fetch(uri, policy) == b"inside", uri
    assert fetch(f"{root}/out.txt", replace(STRICT, allowed_roots=(root.parent,))) == b"outside"
    with pytest.raises(ContentTooLargeError):
        fetch(f"{root}/inner/a b.txt", policy, limit=3)


def test_nothing_else_is_read_from_this_machine(root: Path) -> None:
    policy = replace(STRICT, allowed_roots=(root,))
    (root.parent / "into").symlink_to(root / "inner")  # that it is there is told to nobody
    for uri in (
        f"{root}/../secret.txt",
        f"file://{root}/%2e%2e/secret.txt",
        f"{root}/out/secret.txt",
        f"{root}/out.txt",
        f"{root}-beside/x",
        "/etc/passwd",
        "file:///etc/passwd",
        "file://elsewhere/etc/passwd",
        "inner/a b.txt",
        "file:inner/x",
        f"{root}/\x00",
        f"file://{root}/%00",
        f"{root.parent}/into/a b.txt",
        f"{root.parent}/into/../a b.txt",
        "",
    ):
        with pytest.raises(RefusedUriError):
            fetch(uri, policy)
    with pytest.raises(RefusedUriError, match="VECTORIZE_URIS__ALLOWED_ROOTS"):
        fetch(f"{root}/inner/a b.txt", STRICT)


@pytest.mark.parametrize("name", ["nothing", "inner/a b.txt/x", "inner", "pipe", "loop", "."])
def test_what_is_no_file(root: Path, name: str) -> None:
    with pytest.raises(UnreadableFileError):
        fetch(f"{root}/{name}", replace(STRICT, allowed_roots=(root,)))


def test_a_link_that_appears_after_the_check(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is replaced by a link to the outside at the worst moment."""
    policy = replace(STRICT, allowed_roots=(root,))
    real = os.path.realpath

    def then_swapped(path: Any) -> str:
        resolved = str(real(path))
        if "inner" in str(path) and not (root / "inner").is_symlink():
            (root / "inner").rename(root / "moved")
            (root / "inner").symlink_to(root.parent)
        return resolved

    monkeypatch.setattr(os.path, "realpath", then_swapped)
    with pytest.raises(UnreadableFileError):
        fetch(f"{root}/inner/secret.txt", policy)


def test_other_file_systems_go_through_fsspec() -> None:
    import fsspec

    with fsspec.open("memory://bucket/key", "wb") as file:
        file.write(b"12345")
    policy = replace(STRICT, allowed_schemes=frozenset({"memory"}), allowed_hosts=("bucket",))
    assert fetch("memory://bucket/key", policy) == b"12345"
    with pytest.raises(ContentTooLargeError):
        fetch("memory://bucket/key", policy, limit=4)
    with pytest.raises(UnreadableFileError):
        fetch("memory://bucket/other", policy)
    for uri in (
        "memory://other/key",
        "memory:/bucket/key",
        "memory::file:///etc/passwd",
        "memory://bucket/x::file://y",
    ):
        with pytest.raises(RefusedUriError):
            fetch(uri, policy)


def test_a_certificate_must_be_vouched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with a certificate of its own is refused until its authority is known, and so is another name."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=shop.example"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:shop.example"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, body=b"safe")

        def log_message(self, *_: object) -> None:
            """Nothing to stderr."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        port = server.server_address[1]
        _resolver(monkeypatch, {"shop.example": [["127.0.0.1"]], "other.example": [["127.0.0.1"]]})
        guarded_http._tls.cache_clear()
        with pytest.raises(UnreadableFileError, match="certificate verify failed"):
            fetch(f"https://shop.example:{port}/", LOCAL)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        guarded_http._tls.cache_clear()
        assert fetch(f"https://shop.example:{port}/", LOCAL) == b"safe"
        with pytest.raises(UnreadableFileError, match="certificate verify failed"):
            fetch(f"https://other.example:{port}/", LOCAL)
        guarded_http._tls.cache_clear()
        server.shutdown()
