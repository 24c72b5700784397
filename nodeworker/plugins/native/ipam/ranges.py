"""Which addresses a host-local network may hand out, and in which order.

A network has range sets: a container gets one address of each. A set is a list of ranges of one family.

Pure.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import chain, combinations
from typing import TypeAlias

import msgspec

from nodeworker.plugins.native.ipam.addresses import Address, Network, optional, with_prefix


class RangeConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A range as it is configured."""

    subnet: str = ""
    range_start: str = ""
    range_end: str = ""
    gateway: str = ""


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """A range with everything that its configuration leaves to the default."""

    subnet: Network
    first: Address
    last: Address
    """Both are handed out too."""
    gateway: Address
    """Never handed out. It may lie outside the subnet."""

    def __contains__(self, address: Address) -> bool:
        return address.version == self.subnet.version and int(self.first) <= int(address) <= int(self.last)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


RangeSet: TypeAlias = tuple[Range, ...]


@functools.lru_cache(128)
def range_sets(configured: tuple[tuple[RangeConfig, ...], ...]) -> tuple[RangeSet, ...]:
    """Return the range sets of a network. Raises ValueError unless they are sound and apart from each other.

    Most interfaces of a network have the same, and to work them out takes as long as to reserve an address.
    """
    if not configured:
        raise ValueError("no range is configured: name a subnet or ranges")
    sets = tuple(tuple(_range(each) for each in members) for members in configured)
    for number, members in enumerate(sets):
        if not members:
            raise ValueError(f"range set {number} is empty")
        if len({each.subnet.version for each in members}) > 1:
            raise ValueError(f"range set {number} mixes IPv4 and IPv6: use a range set for each")
    for one, other in combinations(chain.from_iterable(sets), 2):
        if _overlap(one, other):
            raise ValueError(f"ranges {one} and {other} overlap")
    return sets


def shown(ranges: RangeSet) -> str:
    """Return *ranges* for people."""
    return ", ".join(str(each) for each in ranges)


def room(ranges: RangeSet) -> int:
    """Return how many addresses *ranges* have to hand out."""
    return sum(int(each.last) - int(each.first) + (0 if each.gateway in each else 1) for each in ranges)


def range_of(ranges: RangeSet, address: Address) -> Range | None:
    """Return the range that holds *address*."""
    return next((each for each in ranges if address in each), None)


def candidates(ranges: RangeSet, last_reserved: Address | None) -> Iterator[Address]:
    """Return every address of *ranges* once, beginning after *last_reserved* so that one just freed comes late.

    An address that is in none of them, as after a change of the configuration, begins at the start.
    """
    at = next((i for i, each in enumerate(ranges) if last_reserved is not None and last_reserved in each), None)
    if at is None or last_reserved is None:
        return chain.from_iterable(_span(each, int(each.first), int(each.last)) for each in ranges)
    current = ranges[at]
    others = (_span(each, int(each.first), int(each.last)) for each in (*ranges[at + 1 :], *ranges[:at]))
    return chain(
        _span(current, int(last_reserved) + 1, int(current.last)),
        chain.from_iterable(others),
        _span(current, int(current.first), int(last_reserved)),
    )


def _span(of: Range, first: int, last: int) -> Iterator[Address]:
    kind = type(of.first)
    for number in range(first, last + 1):
        address = kind(number)
        if address != of.gateway:
            yield address


def _range(config: RangeConfig) -> Range:
    prefix = with_prefix(config.subnet)
    if prefix.version == 4 and ":" in config.subnet:
        raise ValueError(f"subnet {config.subnet} is IPv4 in IPv6 notation: write it as IPv4")
    subnet = prefix.network
    if subnet.prefixlen > subnet.max_prefixlen - 2:
        raise ValueError(f"subnet {subnet} is too small to hand out addresses")
    if prefix.ip != subnet.network_address:
        raise ValueError(f"subnet {prefix} has host bits set: the network is {subnet}")
    lowest, highest = subnet.network_address + 1, subnet.broadcast_address - (1 if subnet.version == 4 else 0)
    found = Range(
        subnet=subnet,
        first=optional(config.range_start) or lowest,
        last=optional(config.range_end) or highest,
        gateway=optional(config.gateway) or lowest,
    )
    for name, end in (("rangeStart", found.first), ("rangeEnd", found.last)):
        if end not in subnet:
            raise ValueError(f"{name} {end} is not in subnet {subnet}")
    if int(found.first) > int(found.last):
        raise ValueError(f"range {found} of subnet {subnet} ends before it starts")
    return found


def _overlap(one: Range, other: Range) -> bool:
    same_family = one.subnet.version == other.subnet.version
    return same_family and int(one.first) <= int(other.last) and int(other.first) <= int(one.last)
