"""NAT for what a container sends beyond its network: out there, nobody knows a way back to its own addresses.

The rules are those of the reference plugins' nftables backend (1.6 and newer), down to table, chains and comments: so
its DEL and GC find what was made here, and ``delete`` finds what it made. That of iptables is not touched.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
from collections.abc import Iterable

from nodeworker.interfaces.ends import explaining
from nodeworker.interfaces.native import Call, NativeError
from nodeworker.netlink import expressions, nftables
from nodeworker.netlink.addresses import Address
from nodeworker.netlink.message import Request
from nodeworker.netlink.nftables import INET, POSTROUTING, Chain, Hook, Nftables

BACKENDS = frozenset({None, "nftables"})
"""The values of ``ipMasqBackend`` that ask for nothing else."""

_TABLE = "cni_plugins_masquerade"
_ENTRY = Chain(family=INET, table=_TABLE, name="postrouting")
_RULES = Chain(family=INET, table=_TABLE, name="masq_checks")
_SOURCE_NAT = 100
"""Priority of source NAT among what happens to packets that leave."""
_TABLE_COMMENT = "Masquerading for plugins from github.com/containernetworking/plugins"
_RULES_COMMENT = "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"
_MULTICAST = {
    expressions.IPV4: ipaddress.IPv4Network("224.0.0.0/4"),
    expressions.IPV6: ipaddress.IPv6Network("ff00::/8"),
}
_HASH_DIGITS = 16
_ENTRY_RULES = 3


@functools.cache
def possible() -> bool:
    """Return whether this node's kernel can do it, found out by a rehearsal that leaves nothing behind."""
    samples = (ipaddress.ip_interface("192.0.2.1/24"), ipaddress.ip_interface("2001:db8::1/64"))
    try:
        with Nftables.on_node() as filters:
            filters.rehearse(*_base(), *(_rule(each, "") for each in samples))
    except OSError:
        return False
    return True


def add(call: Call, given: Iterable[Address], *, repeated: bool) -> None:
    """Let the node stand in for the addresses *given*, for packets that leave their networks. Raises NativeError.

    Unless the ADD is *repeated*, there can be no older rules of *call*, and those of all others need not be searched.
    """

    def changes() -> Iterable[Request]:
        if len(nftables.comments(filters, _ENTRY)) != _ENTRY_RULES:
            yield from _base()
        if repeated:
            yield from _deletions(filters, call)
        for address in given:
            yield _rule(address, _comment(call))

    with explaining(f"masquerade what {call.ifname} sends"), Nftables.on_node() as filters:
        filters.amend(changes)


def check(call: Call, count: int) -> None:
    """Raise NativeError unless the rules for *count* addresses are there."""
    with explaining(f"look up the NAT of {call.ifname}"), Nftables.on_node() as filters:
        there = len(nftables.comments(filters, _RULES, _key(call)))
    if there != count:
        raise NativeError(
            f"interface {call.ifname} has {there} rules for its NAT, not one for each of {count} addresses"
        )


def delete(call: Call, filters: Nftables) -> None:
    """Take the rules of *call* away; there may be none. Raises NativeError."""
    with explaining(f"take the NAT of {call.ifname} away"):
        filters.amend(lambda: _deletions(filters, call))


def _deletions(filters: Nftables, call: Call) -> list[Request]:
    return [nftables.delete_rule(_RULES, handle) for handle in nftables.comments(filters, _RULES, _key(call))]


def _base() -> Iterable[Request]:
    """Yield the changes that make what the rules of all attachments share, or put it right."""
    yield nftables.add_table(INET, _TABLE, comment=_TABLE_COMMENT)
    yield nftables.add_chain(_RULES, comment=_RULES_COMMENT)
    yield nftables.add_chain(_ENTRY, hook=Hook(type="nat", number=POSTROUTING, priority=_SOURCE_NAT))
    yield nftables.empty(_ENTRY)
    for family, multicast in _MULTICAST.items():
        yield nftables.add_rule(
            _ENTRY, expressions.of_family(family), expressions.to_network(multicast), expressions.leave()
        )
    yield nftables.add_rule(_ENTRY, expressions.go(_RULES))


def _rule(address: Address, comment: str) -> Request:
    return nftables.add_rule(
        _RULES,
        expressions.of_family(expressions.IPV4 if address.version == 4 else expressions.IPV6),
        expressions.from_address(address),
        expressions.to_network(address.network, outside=True),
        expressions.masquerade(),
        comment=comment,
    )


def _key(call: Call) -> str:
    """Return what the comments of the rules of *call* begin with, and no others."""
    return f"{_hash(call.network)}-{_hash(f'{call.ifname}:{call.container_id}')}"


def _comment(call: Call) -> str:
    network, ifname, container = (each.replace('"', "") for each in (call.network, call.ifname, call.container_id))
    return f"{_key(call)}, net: {network}, if: {ifname}, id: {container}"


def _hash(text: str) -> str:
    return hashlib.sha512(text.encode()).hexdigest()[:_HASH_DIGITS]
