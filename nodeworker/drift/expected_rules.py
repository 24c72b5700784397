"""The rules of the node's packet filter that an interface must have.

Pure. Only rules of native plugins: an executed plugin may be of a version that creates other rules.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from events.schema import DriftKind
from nodeworker.plugins.native.api import Call

Address: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_MASQUERADING = frozenset({"bridge", "ptp"})
_CONFINING = frozenset({"bridge"})
_KEYS = frozenset({"name", "ipMasqBackend"})
"""The configuration keys that the rules depend on."""
RULE_DRIFTS = frozenset({DriftKind.MASQUERADE_MISSING, DriftKind.FILTER_MISSING})
"""The kinds of drift that missing rules cause."""


class ExpectedRules(msgspec.Struct, frozen=True, kw_only=True):
    """The packet filter rules of one interface."""

    call: Call
    """The plugin call, with the fields that the rules depend on."""
    masqueraded: tuple[Address, ...] = ()
    mac: str = ""
    """The only source MAC address that the interface may use; empty: any."""

    def description(self, kind: DriftKind) -> str:
        """Return what the rules do whose absence is a drift of *kind*."""
        if kind is DriftKind.FILTER_MISSING:
            return f"only {self.mac} as sender"
        return f"masquerading of {', '.join(str(each.ip) for each in self.masqueraded)}"


def rules_of(
    config: Mapping[str, Any], container_id: str, ifname: str, addresses: Sequence[Address], mac: str
) -> ExpectedRules | None:
    """Return the rules that the native plugin with *config* created for an interface with *addresses* and *mac*.

    None: it created none.
    """
    kind = config.get("type")
    masqueraded = kind in _MASQUERADING and config.get("ipMasq") is True and bool(addresses)
    confined = kind in _CONFINING and config.get("macspoofchk") is True and bool(mac)
    if not (masqueraded or confined):
        return None
    used_config = {key: value for key, value in config.items() if key in _KEYS}
    return ExpectedRules(
        call=Call(container_id=container_id, netns="", ifname=ifname, config=used_config),
        masqueraded=tuple(addresses) if masqueraded else (),
        mac=mac if confined else "",
    )
