"""Attacks by the address of a content or a callback: what a message names leads to the Internet and nowhere else."""

import ipaddress
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.attacks.hostile_network import (
    ADDRESSES,
    LOOPBACK,
    METADATA,
    OTHER_PUBLIC,
    PORT,
    PRIVATE,
    PUBLIC,
    PUBLIC_6,
)
from tests.components import missing
from tests.servers.web import Web, answer, serving
from vectorize_pipelines.core.guarded_http import refusal
from vectorize_pipelines.errors import RefusedUriError
from vectorize_pipelines.settings import UriSettings
from vectorize_pipelines.sources.fetching import FetchPolicy, fetch

STRICT = FetchPolicy.of(UriSettings())
ALLOWING = replace(STRICT, allow_private=True)

#: However busy the machine is.
ANY_TIME = hypothesis_settings(deadline=None)

#: Written out once more, from the registries and not from the table that is tested.
NEVER = (
    "0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "168.63.129.16", "100.100.100.200", "192.0.0.192",
    "::", "fe80::/10", "ff00::/8", "fd00:ec2::/32", "fd00:ec2::23", "fd00:ec2::254", "fd20:ce::254",
)  # fmt: skip
UNLESS_ALLOWED = (
    "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
    "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "255.255.255.255",
    "::1", "::ffff:0:0:0/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/32", "2001:2::/48",
    "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "3fff::/20", "5f00::/16", "fc00::/7", "fec0::/10",
    "200::/7", "400::/6", "800::/5", "1000::/4", "4000::/3", "6000::/3", "8000::/3", "a000::/3", "c000::/3", "e000::/4",
    "f000::/5", "f800::/6", "fe00::/9",
)  # fmt: skip


def _inside(networks: tuple[str, ...]) -> st.SearchStrategy[str]:
    """An address in one of the networks, often the first or the last."""

    def of(network: Any) -> st.SearchStrategy[str]:
        first, last = int(network.network_address), int(network.broadcast_address)
        made = ipaddress.IPv4Address if network.version == 4 else ipaddress.IPv6Address
        return st.one_of(st.sampled_from([first, last]), st.integers(first, last)).map(lambda n: str(made(n)))

    return st.sampled_from(networks).map(ipaddress.ip_network).flatmap(of)


def _v4(networks: tuple[str, ...]) -> st.SearchStrategy[ipaddress.IPv4Address]:
    return _inside(tuple(each for each in networks if ":" not in each)).map(ipaddress.IPv4Address)


def _v6(bits: int) -> str:
    return str(ipaddress.IPv6Address(bits))


def _bits(prefix: str) -> int:
    return int(ipaddress.IPv6Address(prefix))


#: Every way in which an IPv6 address carries an IPv4 one: (IPv4 as a number, any other bits) -> the address.
CARRIERS: dict[str, Callable[[int, int], int]] = {
    "mapped": lambda n, _: _bits("::ffff:0:0") | n,
    "compatible": lambda n, _: n,
    "translated": lambda n, _: _bits("::ffff:0:0:0") | n,
    "NAT64": lambda n, _: _bits("64:ff9b::") | n,
    "local NAT64 /96": lambda n, any_: _bits("64:ff9b:1::") | (any_ & 0xFFFF) << 64 | n,
    "local NAT64 /64": lambda n, any_: _bits("64:ff9b:1::") | (any_ & 0xFFFF) << 64 | n << 24 | any_ & 0xFFFFFF,
    "local NAT64 /56": lambda n, any_: (
        _bits("64:ff9b:1::") | (any_ & 0xFF) << 72 | (n >> 24) << 64 | (n & 0xFFFFFF) << 32 | any_ & 0xFFFFFFFF
    ),
    "local NAT64 /48": lambda n, any_: (
        _bits("64:ff9b:1::") | (n >> 16) << 64 | (n & 0xFFFF) << 40 | any_ & 0xFFFFFFFFFF
    ),
    "6to4": lambda n, any_: _bits("2002::") | n << 80 | any_ & (1 << 80) - 1,
    "Teredo's server": lambda n, any_: _bits("2001::") | n << 64 | any_ & (1 << 64) - 1,
    "Teredo's client": lambda n, any_: _bits("2001::") | any_ & (1 << 96) - 1 & ~0xFFFFFFFF | n ^ 0xFFFFFFFF,
    "ISATAP": lambda n, any_: _bits("2606:4700::") | (any_ & 0xFFFF) << 64 | 0x5EFE << 32 | n,
    "ISATAP, universal": lambda n, any_: _bits("2606:4700::") | (any_ & 0xFFFF) << 64 | 0x02005EFE << 32 | n,
}
#: Of these the IPv4 address alone decides; the others are refused whatever they carry, unless private ones are allowed.
TRANSPARENT = ("mapped", "NAT64", "6to4", "ISATAP", "ISATAP, universal")


@ANY_TIME
@given(_inside(NEVER))
def test_no_setting_allows_metadata_services_and_what_is_no_host(address: str) -> None:
    assert refusal(address, allow_private=False)
    assert refusal(address, allow_private=True)


@ANY_TIME
@given(_inside(UNLESS_ALLOWED))
def test_nothing_but_the_internet_is_reached(address: str) -> None:
    assert refusal(address, allow_private=False)


@ANY_TIME
@given(st.integers(0, 2**32 - 1).map(lambda n: str(ipaddress.IPv4Address(n))))
def test_the_rest_of_ipv4_is_the_internet(address: str) -> None:
    listed = any(
        ipaddress.IPv4Address(address) in ipaddress.ip_network(each)
        for each in (*NEVER, *UNLESS_ALLOWED)
        if ":" not in each
    )
    assert bool(refusal(address, allow_private=False)) is listed


@pytest.mark.parametrize("carrier", CARRIERS)
@ANY_TIME
@given(address=_v4(NEVER), others=st.integers(0, 2**128 - 1))
def test_a_metadata_service_is_not_reached_through_ipv6(
    carrier: str, address: ipaddress.IPv4Address, others: int
) -> None:
    bits = CARRIERS[carrier](int(address), others)
    if carrier == "compatible" and bits == 1:
        return  # which is ::1
    if "local NAT64 /" in carrier and "/96" not in carrier and int(address) < 1 << 24:
        return  # nobody can tell it from an address of another length; 0.0.0.0/8 leads nowhere there
    assert refusal(_v6(bits), allow_private=False)
    assert refusal(_v6(bits), allow_private=True)


@pytest.mark.parametrize("carrier", CARRIERS)
@ANY_TIME
@given(address=_v4(UNLESS_ALLOWED), others=st.integers(0, 2**128 - 1))
def test_a_private_address_is_not_reached_through_ipv6(
    carrier: str, address: ipaddress.IPv4Address, others: int
) -> None:
    assert refusal(_v6(CARRIERS[carrier](int(address), others)), allow_private=False)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_public_address_is_reached_through_what_is_only_another_spelling(carrier: str) -> None:
    reason = refusal(_v6(CARRIERS[carrier](int(ipaddress.IPv4Address("8.8.8.8")), 0x0808)), allow_private=False)
    assert (reason is None) is (carrier in TRANSPARENT)


@pytest.mark.parametrize(
    "address",
    ["fd00:ec2::23", "fd20:ce::254", "64:ff9b:1::7f00:1", "::ffff:0:7f00:1", "64:ff9b:1:7f00:0:100::", "fec0::1"],
)
def test_addresses_that_once_passed(address: str) -> None:
    assert refusal(address, allow_private=False)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("64:ff9b::7f00:1", "leads to 127.0.0.1, which is a private, loopback"),
        ("fd00:ec2::23", "AWS"),
        ("2002:a9fe:a9fe::", "leads to 169.254.169.254, which is a link-local"),
        ("198.18.0.1", "benchmarking, RFC 2544"),
    ],
)
def test_the_reason_is_said(address: str, said: str) -> None:
    assert said in (refusal(address, allow_private=False) or "")


# ---- every textual form, to a server that would answer


@pytest.fixture(scope="module")
def web() -> Any:
    with serving(lambda handler: answer(handler, body=b"reached")) as server:
        yield server


def _forms(address: ipaddress.IPv4Address) -> list[str]:
    """Ways to write an IPv4 address that some program takes for it."""
    n, parts = int(address), address.packed
    octal = ".".join(f"0{part:o}" for part in parts)
    mapped = ipaddress.IPv6Address(_bits("::ffff:0:0") | n)
    return [
        str(address),
        f"{address}.",
        str(n),
        hex(n),
        f"0X{n:X}",
        f"0{n:o}",
        octal,
        ".".join(hex(part) for part in parts),
        f"{parts[0]}.{n & 0xFFFFFF}",
        f"{parts[0]}.{parts[1]}.{n & 0xFFFF}",
        ".".join(f"{part:03d}" for part in parts),
        str(address).translate(str.maketrans("0123456789", "０１２３４５６７８９")),
        str(address).replace("1", "①").replace("2", "②"),
        *(str(address).replace(".", dot) for dot in "。．｡"),
        quote(str(address), safe="").replace("1", "%31").replace(".", "%2e"),
        f"[{mapped}]",
        f"[::ffff:{address}]",
        f"[0:0:0:0:0:FFFF:{address}]",
        f"[{mapped.exploded.upper()}]",
        f"[{_v6(_bits('64:ff9b::') | n)}]",
        f"[{_v6(_bits('64:ff9b:1::') | n)}]",
        f"[{_v6(_bits('::ffff:0:0:0') | n)}]",
        f"[{_v6(_bits('2002::') | n << 80)}]",
        f"[::{address}]",
        f"[::ffff:{address}%25lo]",
        f"[::ffff:{address}%lo]",
        f"{address}%00",
        f"{address}\N{ZERO WIDTH SPACE}",
        f"public.example@{address}",
        f"{address}#@public.example",
        f"{address}\\@public.example",
    ]


@hypothesis_settings(deadline=None, max_examples=150)
@given(data=st.data(), address=_v4(("127.0.0.0/8", "10.0.0.0/8", "169.254.169.254", "192.168.0.0/16", "0.0.0.0")))
def test_no_spelling_of_a_private_address_is_connected_to(web: Web, data: st.DataObject, address: Any) -> None:
    host = data.draw(st.sampled_from(_forms(address)))
    before = len(web.asked)
    uri = f"http://{host}:{web.port}/" if "#" not in host else f"http://{host}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda *_: pytest.fail(f"{uri} was connected to"))
        with pytest.raises(RefusedUriError):
            fetch(uri, STRICT)
    assert len(web.asked) == before


@pytest.mark.parametrize("scheme", ["ftp", "sftp", "smb", "webhdfs", "dav"])
def test_a_scheme_that_names_hosts_is_only_asked_of_hosts_that_are_allowed(scheme: str) -> None:
    """fsspec resolves and connects by itself, so that no address could be checked."""
    policy = replace(STRICT, allowed_schemes=frozenset({scheme}))
    with pytest.raises(RefusedUriError, match="VECTORIZE_URIS__ALLOWED_HOSTS"):
        fetch(f"{scheme}://127.0.0.1/file", policy)
    with pytest.raises(RefusedUriError, match="VECTORIZE_URIS__ALLOWED_HOSTS"):
        fetch(f"{scheme}://127.0.0.1/file", replace(policy, allowed_hosts=("files.example",)))


@pytest.mark.parametrize("host", ["[fe80::1%25eth0]", "[fe80::1%eth0]", "[fd00:ec2::23]", "[fd20:ce::254]"])
def test_addresses_of_this_link_are_refused_even_where_private_ones_are_allowed(host: str) -> None:
    with pytest.raises(RefusedUriError):
        fetch(f"http://{host}/latest/meta-data/", ALLOWING)


# ---- a name server that lies, and real connections

#: Method, URI, the addresses that are reached, and what the result says.
_Case: TypeAlias = tuple[str, str, list[str], str]


def _named(name: str, reached: list[str], said: str, method: str = "GET") -> _Case:
    return (method, f"http://{name}.test:{PORT}/", reached, said)


def _redirected(place: str, said: str, name: str = "public") -> _Case:
    return ("GET", f"http://{name}.test:{PORT}/to?http://{place}:{PORT}/", [PUBLIC], said)


CASES: dict[str, _Case] = {
    "a public name": _named("public", [PUBLIC], PUBLIC),
    "a public name of IPv6": _named("public6", [PUBLIC_6], PUBLIC_6),
    "a name that becomes this machine's": _named("rebinding", [PUBLIC], PUBLIC),
    "the same for a callback": _named("rebinding", [PUBLIC], PUBLIC, "POST"),
    "a name that was this machine's": _named("rebinding-back", [], "is not asked: 127.0.0.1"),
    "public and private at once": _named("mixed", [], "is not asked: 127.0.0.1"),
    "public and private at once, a callback": _named("mixed", [], "is not asked: 127.0.0.1", "POST"),
    "the last of several": _named("mixed-last", [], "is not asked: 169.254.169.254"),
    "public in IPv4, private in IPv6": _named("mixed6", [], "is not asked: ::1"),
    "a private name": _named("inner", [], "is not asked: 10.0.0.5"),
    "a metadata service by name": _named("metadata", [], "metadata service", "POST"),
    "AWS by IPv6": _named("aws6", [], "metadata service"),
    "a mapped address": _named("mapped", [], "leads to 127.0.0.1"),
    "a translated address": _named("nat64", [], "is not asked: 64:ff9b:1::7f00:1"),
    "a redirect to this machine": _redirected("127.0.0.1", "loopback"),
    "a redirect to this machine by IPv6": _redirected("[::1]", "loopback"),
    "a redirect to a private name": _redirected("inner.test", "10.0.0.5"),
    "a redirect to a metadata service": _redirected("169.254.169.254", "metadata service"),
    "a redirect by NAT64": _redirected("[64:ff9b:1::7f00:1]", "64:ff9b:1::7f00:1"),
    "a redirect to mixed answers": _redirected("mixed.test", "loopback"),
    "a redirect to the same name, which changes": _redirected("rebinding.test", "loopback", "rebinding"),
    "a redirect to a name that flips": _redirected("flipping.test", "metadata service", "flipping"),
}


def _in_a_network_of_its_own(cases: list[list[str]], folder: Path) -> list[dict[str, Any]]:
    """Runs `hostile_network` in new namespaces: its devices, its resolver and its port 53 are nobody else's."""
    resolver = folder / "resolv.conf"
    resolver.write_text(f"nameserver {LOOPBACK}\noptions timeout:5 attempts:2\n")
    setup = [
        "ip link set lo up",
        *(f"ip addr add {each}/{128 if ':' in each else 32} dev lo nodad" for each in ADDRESSES if ":" in each),
        *(f"ip addr add {each}/32 dev lo" for each in ADDRESSES if ":" not in each),
        f"mount --bind {resolver} $(realpath /etc/resolv.conf)",
    ]
    unshare = ["unshare", "--net", "--mount", "--map-root-user", "sh", "-ec", " && ".join(setup)]
    try:
        tried = subprocess.run(unshare, capture_output=True, text=True, check=False, timeout=60)
        problem = tried.stderr.strip() if tried.returncode else ""
    except FileNotFoundError as error:
        problem = str(error)
    if problem:
        missing(f"no network of a test's own: {problem}")
    unshare[-1] += f" && exec {sys.executable} -m tests.attacks.hostile_network"
    done = subprocess.run(unshare, input=json.dumps(cases), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_name_server_that_lies_leads_nowhere(tmp_path: Path) -> None:
    """Each address that is connected to is one that was checked, and of every name only one answer counts a hop."""
    found = _in_a_network_of_its_own([[method, uri] for method, uri, *_ in CASES.values()], tmp_path)
    wrong = {}
    for (case, (_, uri, reached, said)), result in zip(CASES.items(), found, strict=True):
        hops = uri.count(".test:")  # a name that is redirected to itself is asked for again
        asked = max(result["questions"].values(), default=0)
        if result["reached"] != reached or said not in result["result"] or asked > hops:
            wrong[case] = result
    assert not wrong
    assert not {PRIVATE, METADATA, LOOPBACK, OTHER_PUBLIC} & {each for result in found for each in result["reached"]}
