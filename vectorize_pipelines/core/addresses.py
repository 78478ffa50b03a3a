"""IP addresses that are not those of one host on the Internet: a table of our own, tested by range.

The ranges are those of IANA's registries of special-purpose addresses (for IPv4 and for IPv6), multicast, and the
metadata services of clouds. The standard library's `is_global` and `is_private` change with the version of Python, and
know neither these services nor most of the ways in which an IPv6 address carries an IPv4 one.
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class Kind(StrEnum):
    """A reason why an address is not simply a host of the Internet, in words that follow "is"."""

    METADATA = "a link-local address or one of a metadata service"
    NO_HOST = "not the address of one host"
    PRIVATE = "a private, loopback or reserved address"


@dataclass(frozen=True, slots=True)
class Range:
    """One range of addresses, and what they are."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    kind: Kind
    name: str


def _ranges(kind: Kind, *rows: tuple[str, str]) -> tuple[Range, ...]:
    return tuple(Range(ipaddress.ip_network(network), kind, name) for network, name in rows)


#: The first that holds an address says what it is. No setting allows those of the first two kinds.
SPECIAL_RANGES: tuple[Range, ...] = (
    *_ranges(
        Kind.METADATA,
        ("169.254.0.0/16", "link-local, RFC 3927; most clouds' metadata services"),
        ("168.63.129.16/32", "Azure"),
        ("100.100.100.200/32", "Alibaba Cloud"),
        ("192.0.0.192/32", "Oracle Cloud"),
        ("fe80::/10", "link-local, RFC 4291"),
        ("fd00:ec2::/32", "AWS"),
        ("fd20:ce::/48", "Google Cloud"),
        ("fd00:c1::/32", "Oracle Cloud"),
        ("fd00:42::/32", "Scaleway"),
    ),
    *_ranges(
        Kind.NO_HOST,
        ("0.0.0.0/8", "this network, RFC 791"),
        ("224.0.0.0/4", "multicast, RFC 5771"),
        ("::/128", "unspecified, RFC 4291"),
        ("ff00::/8", "multicast, RFC 4291"),
    ),
    *_ranges(
        Kind.PRIVATE,
        ("10.0.0.0/8", "private use, RFC 1918"),
        ("100.64.0.0/10", "shared address space of providers, RFC 6598"),
        ("127.0.0.0/8", "loopback, RFC 1122"),
        ("172.16.0.0/12", "private use, RFC 1918"),
        ("192.0.0.0/24", "protocol assignments, RFC 6890"),
        ("192.0.2.0/24", "documentation, RFC 5737"),
        ("192.88.99.0/24", "relays of 6to4, RFC 7526"),
        ("192.168.0.0/16", "private use, RFC 1918"),
        ("198.18.0.0/15", "benchmarking, RFC 2544"),
        ("198.51.100.0/24", "documentation, RFC 5737"),
        ("203.0.113.0/24", "documentation, RFC 5737"),
        ("240.0.0.0/4", "reserved, RFC 1112; broadcast, RFC 919"),
        ("::1/128", "loopback, RFC 4291"),
        ("::/96", "compatible with IPv4, RFC 4291, which withdrew it"),
        ("::ffff:0:0:0/96", "translated IPv4, RFC 2765"),
        ("64:ff9b:1::/48", "local translation to IPv4, RFC 8215"),
        ("100::/64", "discard, RFC 6666"),
        ("100:0:0:1::/64", "dummy prefix, RFC 9780"),
        ("2001:2::/48", "benchmarking, RFC 5180"),
        ("2001:10::/28", "ORCHID, RFC 4843"),
        ("2001:20::/28", "ORCHID version 2, RFC 7343"),
        ("2001:30::/28", "identifiers of aircraft, RFC 9374"),
        ("2001::/23", "protocol assignments, RFC 2928; Teredo, RFC 4380"),
        ("2001:db8::/32", "documentation, RFC 3849"),
        ("3ffe::/16", "the 6bone, RFC 3701, which withdrew it"),
        ("3fff::/20", "documentation, RFC 9637"),
        ("5f00::/16", "segment identifiers, RFC 9602"),
        ("fc00::/7", "unique local, RFC 4193"),
        ("fec0::/10", "site-local, RFC 3879"),
    ),
)
#: All IPv6 addresses of hosts on the Internet lie in it; of the rest most is not allocated.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_OTHER_IPV6 = Range(ipaddress.IPv6Network("::/0"), Kind.PRIVATE, "outside of 2000::/3, RFC 4291")

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_TEREDO = ipaddress.IPv6Network("2001::/32")
#: Prefixes by which the IPv4 address alone says where a packet goes.
_OTHER_SPELLINGS = (_MAPPED, _NAT64, _SIX_TO_FOUR)
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")


def special_range(address: Address) -> Range | None:
    """Return the range that makes an address other than a host of the Internet, by itself; None where it is one."""
    for each in SPECIAL_RANGES:
        if address.version == each.network.version and address in each.network:
            return each
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return _OTHER_IPV6
    return None


def destinations(address: Address) -> tuple[Address, ...]:
    """Return the addresses to judge before one is connected to: itself, and every IPv4 address that it may lead to."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    carried = tuple(dict.fromkeys(_carried(int(address), address)))
    if any(address in network for network in _OTHER_SPELLINGS):
        return carried
    return (address, *carried)


def _carried(bits: int, address: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """Yield the IPv4 addresses in an IPv6 one, in every form that a host or a router on the way may undo."""
    lowest = bits & 0xFFFFFFFF
    if address in _MAPPED or address in _TRANSLATED or address in _NAT64:
        yield ipaddress.IPv4Address(lowest)
    if address in _COMPATIBLE and bits > 1:  # :: and ::1 are older than that form
        yield ipaddress.IPv4Address(lowest)
    if address in _LOCAL_NAT64:
        yield from _translated(bits)
    if address in _SIX_TO_FOUR:
        yield ipaddress.IPv4Address(bits >> 80 & 0xFFFFFFFF)
    if address in _TEREDO:
        yield ipaddress.IPv4Address(bits >> 64 & 0xFFFFFFFF)  # the server
        yield ipaddress.IPv4Address(~bits & 0xFFFFFFFF)  # the client, every bit turned over
    if bits >> 32 & 0xFCFFFFFF == 0x00005EFE:  # ISATAP, RFC 5214, with or without its bits u and g
        yield ipaddress.IPv4Address(lowest)


def _translated(bits: int) -> Iterator[ipaddress.IPv4Address]:
    """Yield the IPv4 address behind a translator whose prefix has 96, 64, 56 or 48 bits (RFC 6052); nobody knows which.

    Of the shorter prefixes the bits 64 to 71 are left out. An address below 1.0.0.0 is that of another length.
    """
    yield ipaddress.IPv4Address(bits & 0xFFFFFFFF)
    above, below = bits >> 64, bits & ((1 << 56) - 1)  # what precedes the bits 64 to 71, and what follows them
    for length in (64, 56, 48):
        high = 64 - length  # so many of its 32 bits precede them
        number = (above & ((1 << high) - 1)) << (32 - high) | below >> (24 + high)
        found = ipaddress.IPv4Address(number)
        if found not in _THIS_NETWORK:
            yield found
