"""Parse addresses as CNI plugins do; Python's own parser accepts more.

Zones, netmasks and missing prefix lengths are errors; an IPv4 address in IPv6 notation becomes the IPv4 address.

Pure.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface
Network: TypeAlias = IPv4Network | IPv6Network

_MAPPED_BITS = 96
"""Length of the prefix ::ffff:0:0, which contains the IPv4 addresses (RFC 4291, section 2.5.5.2)."""


def address(text: str) -> Address:
    """Return the address in *text*. Raises ValueError."""
    try:
        parsed = ipaddress.ip_address("" if "%" in text else text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed


def with_prefix(text: str) -> Interface:
    """Return the address in *text*, host bits included, with its prefix length. Raises ValueError."""
    base, slash, length = text.partition("/")
    if not slash or len(length) > 3 or not (length.isascii() and length.isdigit()):
        raise ValueError(f"{text!r} is not an IP address with a prefix length:  write it like 10.1.2.3/24")
    parsed = address(base)
    bits = int(length) - (_MAPPED_BITS if parsed.version == 4 and ":" in base else 0)
    if not 0 <= bits <= parsed.max_prefixlen:
        raise ValueError(f"the prefix length of {text!r} does not fit the address")
    return ipaddress.ip_interface((parsed, bits))


def optional(text: str) -> Address | None:
    """Return the address in *text*, or None if *text* is empty. Raises ValueError."""
    return address(text) if text else None
