"""Parse addresses as the plugins do, which are written in Go; Python's own parser accepts more and less.

Annotations, native plugins, IPAM and results all use this grammar, which is that of ParseIP, ParseCIDR and ParseMAC. So
zones, netmasks and leading zeros are errors, and an IPv4 address in IPv6 notation becomes the IPv4 address. What is
returned is in canonical form.

Pure.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TypeAlias

from nodeworker.plugins.spec.names import shown

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface
Network: TypeAlias = IPv4Network | IPv6Network

_MAPPED_BITS = 96
"""Length of the prefix ::ffff:0:0, which contains the IPv4 addresses (RFC 4291, section 2.5.5.2)."""

ETHERNET, _EUI64, INFINIBAND = 6, 8, 20
"""Bytes of a hardware address; those of InfiniBand links are in RFC 4391, section 9.1.1."""
_DIGITS = 4
_LINKS = {ETHERNET: "Ethernet", INFINIBAND: "InfiniBand"}
_HEX = r"[0-9A-Fa-f]"
_HARDWARE = re.compile(rf"{_HEX}{{2}}(?P<mark>[:-]){_HEX}{{2}}(?:(?P=mark){_HEX}{{2}})*|{_HEX}{{4}}(?:\.{_HEX}{{4}})+")
_CACHED = 512
"""Addresses that are kept parsed: each is in several results and configurations."""
_GROUP_BIT = 0x01
"""In the first byte of an Ethernet address: it is for several receivers (IEEE 802)."""


def address(text: str) -> Address:
    """Return the IP address in *text*. Raises ValueError."""
    try:
        parsed = ipaddress.ip_address("" if "%" in text else text)
    except ValueError:
        raise ValueError(f"{shown(text)} is not an IP address") from None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed


def with_prefix(text: str) -> Interface:
    """Return the address in *text*, host bits included, with its prefix length. Raises ValueError."""
    return ipaddress.ip_interface(_split(text))


def network(text: str) -> Network:
    """Return the network of the address with a prefix length in *text*. Raises ValueError."""
    return with_prefix(text).network


def family(text: str) -> int:
    """Return 4 or 6, the IP version of the address with a prefix length in *text*. Raises ValueError."""
    return _split(text)[0].version  # what ``with_prefix`` does besides takes twice as long


def optional(text: str) -> Address | None:
    """Return the IP address in *text*, or None if *text* is empty. Raises ValueError."""
    return address(text) if text else None


def hardware_address(text: str) -> str:
    """Return the hardware address in *text*, of 6, 8 or 20 bytes, in lower case with colons. Raises ValueError."""
    digits = re.sub("[:.-]", "", text).lower() if _HARDWARE.fullmatch(text) else ""
    if len(digits) // 2 not in (ETHERNET, _EUI64, INFINIBAND):
        raise ValueError(f"{shown(text)} is not a hardware address: write it like 02:00:5e:10:00:01")
    return bytes.fromhex(digits).hex(":")


def guid(text: str) -> str:
    """Return the InfiniBand GUID in *text*, of 8 bytes and spelled like a hardware address. Raises ValueError."""
    try:
        parsed = hardware_address(text)
    except ValueError:
        parsed = ""
    if length(parsed) != _EUI64:
        raise ValueError(f"{shown(text)} is not a GUID, which has 8 bytes: write it like 02:00:5e:10:00:00:00:01")
    return parsed


def interface_address(text: str) -> str:
    """Return the hardware address in *text*, which an interface can have: of Ethernet or InfiniBand.

    Raises ValueError. The kernel refuses a multicast address and one of zeros, and does not say which it is.
    """
    parsed = hardware_address(text)
    if length(parsed) not in _LINKS:
        raise ValueError(
            f"{shown(text)} has {length(parsed)} bytes, and an interface has {ETHERNET} (Ethernet) or {INFINIBAND} "
            "(InfiniBand): write one of those"
        )
    if not int(parsed.replace(":", ""), 16):
        raise ValueError(f"{shown(text)} is all zero, which no interface can have: choose another, or leave it out")
    if length(parsed) == ETHERNET and int(parsed[:2], 16) & _GROUP_BIT:
        raise ValueError(f"{shown(text)} is a multicast address, which no interface can have: make its first byte even")
    return parsed


def check_fits(parsed: str, size: int, ifname: str) -> None:
    """Raise ValueError unless the hardware address *parsed* has *size* bytes, as those of the link *ifname* have."""
    if length(parsed) != size:
        raise ValueError(
            f"{shown(parsed)} has {length(parsed)} bytes{_as_on(length(parsed))}, and an address of {ifname} has "
            f"{size}{_as_on(size)}: ask for one that fits"
        )


def length(parsed: str) -> int:
    """Return how many bytes the hardware address *parsed*, in canonical form, has."""
    return (len(parsed) + 1) // 3


def _as_on(size: int) -> str:
    return f", as on {_LINKS[size]}" if size in _LINKS else ""


@functools.lru_cache(_CACHED)
def _split(text: str) -> tuple[Address, int]:
    base, _, bits = text.partition("/")
    try:
        parsed = address(base if bits.isascii() and bits.isdigit() else "")
    except ValueError:
        raise ValueError(
            f"{shown(text)} is not an IP address with a prefix length: write it like 10.1.2.3/24"
        ) from None
    prefix = int(bits.lstrip("0")[:_DIGITS] or "0")  # one digit more than the longest length has
    prefix -= _MAPPED_BITS if parsed.version == 4 and ":" in base else 0
    if not 0 <= prefix <= parsed.max_prefixlen:
        raise ValueError(f"the prefix length of {shown(text)} does not fit the address")
    return parsed, prefix
