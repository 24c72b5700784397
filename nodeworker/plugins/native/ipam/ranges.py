"""The addresses that a host-local network may assign, and their order.

A container gets one address of each range set of its network. A range set is a list of ranges of one family.

Pure.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import chain, combinations
from typing import TypeAlias

import msgspec

from nodeworker.plugins.spec.addresses import Address, Network, optional, with_prefix
from nodeworker.plugins.spec.names import each_at


class RangeConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A configured range."""

    subnet: str = ""
    range_start: str = ""
    range_end: str = ""
    gateway: str = ""


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """A range with its defaults filled in."""

    subnet: Network
    first: Address
    last: Address
    """Both ends can be assigned."""
    gateway: Address
    """Never assigned. It may be outside the subnet."""

    def __contains__(self, address: Address) -> bool:
        return address.version == self.subnet.version and int(self.first) <= int(address) <= int(self.last)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


RangeSet: TypeAlias = tuple[Range, ...]


@functools.lru_cache(128)
def range_sets(configured: tuple[tuple[RangeConfig, ...], ...]) -> tuple[RangeSet, ...]:
    """Return the range sets of a network. Raises ValueError if one is invalid or two overlap.

    Cached: most interfaces of a network have the same, and parsing takes as long as reserving an address.
    """
    if not configured:
        raise ValueError("no range is configured: set subnet or ranges")
    sets = tuple(each_at(f"range set {number}", members, _range) for number, members in enumerate(configured))
    for number, members in enumerate(sets):
        if not members:
            raise ValueError(f"range set {number} is empty: add a range")
        if len({each.subnet.version for each in members}) > 1:
            raise ValueError(f"range set {number} mixes IPv4 and IPv6: use a range set for each")
    for one, other in combinations(chain.from_iterable(sets), 2):
        if _overlap(one, other):
            raise ValueError(f"ranges {one} and {other} overlap: separate them")
    return sets


def shown(ranges: RangeSet) -> str:
    """Return *ranges* as text for messages."""
    return ", ".join(str(each) for each in ranges)


def room(ranges: RangeSet) -> int:
    """Return how many addresses of *ranges* can be assigned."""
    return sum(int(each.last) - int(each.first) + (0 if each.gateway in each else 1) for each in ranges)


def range_of(ranges: RangeSet, address: Address) -> Range | None:
    """Return the range that contains *address*, or None."""
    return next((each for each in ranges if address in each), None)


def candidates(ranges: RangeSet, last_reserved: Address | None) -> Iterator[Address]:
    """Return every address of *ranges* once, starting after *last_reserved*, so a freed address is reused late.

    If no range contains *last_reserved*, as after a change of the configuration, the first address comes first.
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
        raise ValueError(f"subnet {subnet} is too small: use a larger subnet")
    if prefix.ip != subnet.network_address:
        raise ValueError(f"subnet {prefix} has host bits set: write {subnet}")
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
