"""Which rules of the node's packet filter there must be for an interface.

Pure. Only those of a native plugin: an executed one may be of a version that makes others.
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
"""Of the configuration: what the rules themselves depend on."""
KINDS = frozenset({DriftKind.MASQUERADE_MISSING, DriftKind.FILTER_MISSING})
"""How an interface can drift by its rules."""


class Ruled(msgspec.Struct, frozen=True, kw_only=True):
    """An interface that there are rules for."""

    call: Call
    """Of its plugin, as far as the rules depend on it."""
    masqueraded: tuple[Address, ...] = ()
    mac: str = ""
    """The only one that it may send from; empty: any."""

    def expected(self, kind: DriftKind) -> str:
        """Return what the rules are for whose lack is a drift of *kind*."""
        if kind is DriftKind.FILTER_MISSING:
            return f"only {self.mac} as sender"
        return f"masquerading of {', '.join(str(each.ip) for each in self.masqueraded)}"


def ruled(
    config: Mapping[str, Any], container_id: str, ifname: str, addresses: Sequence[Address], mac: str
) -> Ruled | None:
    """Return what the native plugin with *config* has made rules for, if it gave its interface *addresses* and *mac*.

    None: it made none.
    """
    kind = config.get("type")
    masqueraded = kind in _MASQUERADING and config.get("ipMasq") is True and bool(addresses)
    confined = kind in _CONFINING and config.get("macspoofchk") is True and bool(mac)
    if not (masqueraded or confined):
        return None
    kept = {key: value for key, value in config.items() if key in _KEYS}
    return Ruled(
        call=Call(container_id=container_id, netns="", ifname=ifname, config=kept),
        masqueraded=tuple(addresses) if masqueraded else (),
        mac=mac if confined else "",
    )
