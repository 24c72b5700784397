"""Find missing rules of interfaces in the node's packet filter, and create them again.

Another program may flush the whole filter, and the interface itself shows no change.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterator, Mapping
from typing import cast

from events.schema import DriftKind, ErrorClass, Phase
from nodeworker.drift.expected_rules import ExpectedRules
from nodeworker.errors import failed
from nodeworker.kernel.nftables import client
from nodeworker.kernel.nftables.client import Rules
from nodeworker.kernel.nftables.ruleset_cache import RulesetCache
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.filter import mac_filter, masquerade

_MARKS = re.compile("|".join((mac_filter.MARK, masquerade.MARK)).encode())


def marks(expected: ExpectedRules) -> Iterator[bytes]:
    """Yield the marks by which ``concerns`` recognises the *expected* rules in a kernel message."""
    if expected.mac:
        yield mac_filter.mark(expected.call).encode()
    if expected.masqueraded:
        yield from (mark.encode() for mark in masquerade.marks(expected.call))


def concerns(body: bytes, watched: Container[bytes]) -> bool:
    """Return whether the message *body* is about a rule with one of the *watched* marks, or a rule shared by all."""
    if any(mark in watched for mark in _MARKS.findall(body)):
        return True
    return client.rule_place(body) == (masquerade.WAY.table, masquerade.WAY.name)


def missing_rules(
    expected: Collection[ExpectedRules], phase: Phase, cache: RulesetCache
) -> dict[str, Mapping[DriftKind, str]]:
    """Return the interfaces whose rules are incomplete, by name, with what remains of the rules.

    Raises RequestFailedError (plugin_failed), NetlinkError.
    """
    if not expected:
        return {}
    try:
        with cache.opened() as present:
            return {each.call.ifname: found for each in expected if (found := _remaining(each, present))}
    except NativeError as error:
        raise failed(ErrorClass.PLUGIN_FAILED, phase, f"can't look up the rules for a container: {error}") from error


def restore(expected: ExpectedRules, kind: DriftKind, port: str) -> None:
    """Create the rules whose absence is a drift of *kind*; *port* is the veth end on the node. Raises NativeError."""
    if kind is DriftKind.MASQUERADE_MISSING:
        masquerade.install(expected.call, _backend(expected), expected.masqueraded)
    else:
        mac_filter.install(expected.call, port, expected.mac)


def _remaining(expected: ExpectedRules, present: Rules) -> Mapping[DriftKind, str]:
    """Return what remains of incomplete rules, by the kind of drift."""
    remaining: dict[DriftKind, str | None] = {}
    if expected.mac:
        remaining[DriftKind.FILTER_MISSING] = mac_filter.left(expected.call, present)
    if expected.masqueraded:
        found = masquerade.left(expected.call, _backend(expected), expected.masqueraded, present)
        remaining[DriftKind.MASQUERADE_MISSING] = found
    return {kind: found for kind, found in remaining.items() if found is not None}


def _backend(expected: ExpectedRules) -> masquerade.Backend | None:
    return cast("masquerade.Backend | None", expected.call.config.get("ipMasqBackend"))
