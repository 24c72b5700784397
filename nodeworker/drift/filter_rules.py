"""The rules that the node's packet filter has for an interface: what is left of them, and how they are made again.

A filter is flushed as a whole, by whoever takes it for theirs alone, and the interface itself shows nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterator, Mapping
from typing import cast

from events.schema import DriftKind, ErrorClass, Phase
from nodeworker.drift.expected_rules import Ruled
from nodeworker.errors import failed
from nodeworker.kernel.nftables import client
from nodeworker.kernel.nftables.client import Rules
from nodeworker.kernel.nftables.ruleset_cache import RulesetCache
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.filter import mac_filter, masquerade

_MARKS = re.compile("|".join((mac_filter.MARK, masquerade.MARK)).encode())


def marks(wanted: Ruled) -> Iterator[bytes]:
    """Yield what rules have in them of which ``concerns`` tells whom they are for."""
    if wanted.mac:
        yield mac_filter.mark(wanted.call).encode()
    if wanted.masqueraded:
        yield from (mark.encode() for mark in masquerade.marks(wanted.call))


def concerns(body: bytes, watched: Container[bytes]) -> bool:
    """Return whether a message with *body* is about a rule for one of those with *watched* marks, or for all."""
    if any(mark in watched for mark in _MARKS.findall(body)):
        return True
    return client.place_of(body) == (masquerade.WAY.table, masquerade.WAY.name)


def lost(wanted: Collection[Ruled], phase: Phase, rules: RulesetCache) -> dict[str, Mapping[DriftKind, str]]:
    """Return by interface name what is left of the rules for it, of those that are not all there.

    Raises RequestFailedError (plugin_failed), NetlinkError.
    """
    if not wanted:
        return {}
    try:
        with rules.opened() as known:
            return {each.call.ifname: left for each in wanted if (left := _left(each, known))}
    except NativeError as error:
        raise failed(ErrorClass.PLUGIN_FAILED, phase, f"can not look up the rules for a container: {error}") from error


def make(wanted: Ruled, kind: DriftKind, port: str) -> None:
    """Make the rules again whose lack is a drift of *kind*; *port* is the interface's other end. Raises NativeError."""
    if kind is DriftKind.MASQUERADE_MISSING:
        masquerade.masquerade(wanted.call, _backend(wanted), wanted.masqueraded)
    else:
        mac_filter.confine(wanted.call, port, wanted.mac)


def _left(wanted: Ruled, known: Rules) -> Mapping[DriftKind, str]:
    left: dict[DriftKind, str | None] = {}
    if wanted.mac:
        left[DriftKind.FILTER_MISSING] = mac_filter.left(wanted.call, known)
    if wanted.masqueraded:
        there = masquerade.left(wanted.call, _backend(wanted), wanted.masqueraded, known)
        left[DriftKind.MASQUERADE_MISSING] = there
    return {kind: found for kind, found in left.items() if found is not None}


def _backend(wanted: Ruled) -> masquerade.Backend | None:
    return cast("masquerade.Backend | None", wanted.call.config.get("ipMasqBackend"))
