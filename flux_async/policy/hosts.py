"""Decides which hosts are public: IP addresses by IANA's registries, names by their endings."""

from __future__ import annotations

import enum
import ipaddress
import re
from functools import lru_cache
from socket import inet_aton
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

INNER_NAMES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
"""Endings of names that no public resolver resolves."""

_NUMBER = re.compile(r"[0-9a-fx.]+")


class AddressKind(enum.StrEnum):
    """Why an address is not public."""

    LOOPBACK = "loopback"
    PRIVATE = "private"
    SHARED = "shared (carrier-grade NAT)"
    LINK_LOCAL = "link-local"
    METADATA = "cloud metadata"
    BENCHMARK = "benchmark"
    MULTICAST = "multicast"
    UNSPECIFIED = "unspecified"
    RESERVED = "reserved"


_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "168.63.129.16",  # Azure
        "169.254.169.254",  # most clouds
        "169.254.170.2",  # Amazon's containers
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # Amazon
        "fd20:ce::254",  # Google
    )
)

# IANA's registries of special-purpose addresses. The ipaddress module's own is_private and is_global differ
# between patch releases of Python, and its "private" means something else.
_SPECIAL_V4 = tuple(
    (ipaddress.IPv4Network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", AddressKind.UNSPECIFIED),
        ("10.0.0.0/8", AddressKind.PRIVATE),
        ("100.64.0.0/10", AddressKind.SHARED),
        ("127.0.0.0/8", AddressKind.LOOPBACK),
        ("169.254.0.0/16", AddressKind.LINK_LOCAL),
        ("172.16.0.0/12", AddressKind.PRIVATE),
        ("192.0.0.0/24", AddressKind.RESERVED),
        ("192.0.2.0/24", AddressKind.RESERVED),
        ("192.88.99.0/24", AddressKind.RESERVED),
        ("192.168.0.0/16", AddressKind.PRIVATE),
        ("198.18.0.0/15", AddressKind.BENCHMARK),
        ("198.51.100.0/24", AddressKind.RESERVED),
        ("203.0.113.0/24", AddressKind.RESERVED),
        ("224.0.0.0/4", AddressKind.MULTICAST),
        ("240.0.0.0/4", AddressKind.RESERVED),
    )
)
_SPECIAL_V6 = tuple(
    (ipaddress.IPv6Network(network), kind)
    for network, kind in (
        ("::/128", AddressKind.UNSPECIFIED),
        ("::1/128", AddressKind.LOOPBACK),
        ("fc00::/7", AddressKind.PRIVATE),
        ("fe80::/10", AddressKind.LINK_LOCAL),
        ("ff00::/8", AddressKind.MULTICAST),
        ("2001::/23", AddressKind.RESERVED),  # Teredo, ORCHID …
        ("2001:db8::/32", AddressKind.RESERVED),
        ("3fff::/20", AddressKind.RESERVED),
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def kind_of(address: Address) -> AddressKind | None:
    """Return why an address is not public; None for a public one."""
    if address in _METADATA:
        return AddressKind.METADATA
    if isinstance(address, ipaddress.IPv4Address):
        return next((kind for network, kind in _SPECIAL_V4 if address in network), None)
    hidden = address.ipv4_mapped or address.sixtofour
    if hidden is None and address in _NAT64:
        hidden = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if hidden is not None:
        return kind_of(hidden)
    special = next((kind for network, kind in _SPECIAL_V6 if address in network), None)
    return special if special is not None or address in _GLOBAL_V6 else AddressKind.RESERVED


def literal(host: str) -> Address | None:
    """Return the address that ``host`` is, in any spelling a system accepts, or None for a name.

    ``2130706433``, ``0x7f.1`` and ``0177.0.0.1`` are 127.0.0.1 to most systems.
    """
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(inet_aton(host)) if _NUMBER.fullmatch(host) else None
    except OSError:
        return None


@lru_cache(maxsize=64)
def may_be_public(host: str) -> bool:
    """Return whether ``host``, a name or an IP address, may be reachable from the internet."""
    bare = host.lower().rstrip(".")
    if (address := literal(bare)) is not None:
        return kind_of(address) is None
    return "." in bare and not bare.endswith(INNER_NAMES)
