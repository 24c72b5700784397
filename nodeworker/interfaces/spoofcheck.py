"""A filter that lets a container send from no MAC address but its own.

The chains and rules are those of the reference plugin's ``macspoofchk``, down to their names and comments: either
takes away what the other made.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from nodeworker.interfaces.ends import explaining
from nodeworker.interfaces.native import Call, NativeError
from nodeworker.netlink import expressions, nftables
from nodeworker.netlink.message import Request
from nodeworker.netlink.nftables import BRIDGE, COMMENT_BYTES, PREROUTING, Chain, Hook, Nftables

_TABLE = "nat"
_ENTRY = Chain(family=BRIDGE, table=_TABLE, name="PREROUTING")
_HOOK = Hook(type="filter", number=PREROUTING, priority=-300)


@functools.cache
def possible() -> bool:
    """Return whether this node's kernel can do it, found out by a rehearsal that leaves nothing behind."""
    own, its_mac = _chains("rehearsal")
    try:
        with Nftables.on_node() as filters:
            base = (nftables.add_table(BRIDGE, _TABLE), nftables.add_chain(_ENTRY, hook=_HOOK))
            chains = (nftables.add_chain(own), nftables.add_chain(its_mac))
            filters.rehearse(*base, *chains, *_rules("rehearsal", "lo", "02:00:00:00:00:00"))
    except OSError:
        return False
    return True


def add(call: Call, port: str, mac: str) -> None:
    """Drop what comes in through *port* of a bridge and not from *mac*. Raises NativeError."""
    key = _key(call)

    def changes() -> Iterable[Request]:
        if not nftables.exists(filters, _ENTRY):
            yield nftables.add_table(BRIDGE, _TABLE)
            yield nftables.add_chain(_ENTRY, hook=_HOOK)
        own, its_mac = _chains(key)
        if nftables.exists(filters, own):  # only then can something lead to it
            yield from _entrances(filters, key)
        for chain in (own, its_mac):
            yield nftables.add_chain(chain)
            yield nftables.empty(chain)
        yield from _rules(key, port, mac)

    if len(_comment(key).encode()) > COMMENT_BYTES:
        raise NativeError(f"macspoofchk names its rules after the container ID, and {call.container_id!r} is too long")
    with explaining(f"filter the MAC addresses that {call.ifname} sends from"), Nftables.on_node() as filters:
        filters.amend(changes)


def check(call: Call) -> None:
    """Raise NativeError unless the filter is there."""
    key = _key(call)
    with explaining(f"look up the MAC address filter of {call.ifname}"), Nftables.on_node() as filters:
        whole = all(nftables.comments(filters, chain, _comment(key)) for chain in (_ENTRY, *_chains(key)))
    if not whole:
        raise NativeError(f"interface {call.ifname} has lost the filter of the MAC addresses that it may send from")


def delete(call: Call, filters: Nftables) -> None:
    """Take the filter of *call* away; what is gone already is fine. Raises NativeError."""
    key = _key(call)

    def changes() -> Iterable[Request]:
        yield from _entrances(filters, key)
        for chain in _chains(key):
            if nftables.exists(filters, chain):
                yield nftables.delete_chain(chain)

    with explaining(f"take the MAC address filter of {call.ifname} away"):
        filters.amend(changes)


def _entrances(filters: Nftables, key: str) -> Iterable[Request]:
    """Yield the deletions of the rules that lead to the chains of *key*."""
    for handle, comment in nftables.comments(filters, _ENTRY, _comment(key)).items():
        if comment == _comment(key):
            yield nftables.delete_rule(_ENTRY, handle)


def _rules(key: str, port: str, mac: str) -> Iterable[Request]:
    own, its_mac = _chains(key)
    comment = _comment(key)
    yield nftables.add_rule(_ENTRY, expressions.arrived_through(port), expressions.jump(own), comment=comment)
    yield nftables.add_rule(own, expressions.jump(its_mac), comment=comment)
    yield nftables.add_rule(its_mac, expressions.from_mac(mac), expressions.leave(), comment=comment)
    yield nftables.add_rule(its_mac, expressions.drop(), comment=comment)


def _chains(key: str) -> tuple[Chain, Chain]:
    """Return the attachment's chain, and the one that it leads to."""
    name = f"cni-br-iface-{key}"
    return Chain(family=BRIDGE, table=_TABLE, name=name), Chain(family=BRIDGE, table=_TABLE, name=f"{name}-mac")


def _comment(key: str) -> str:
    return f"macspoofchk-{key}"


def _key(call: Call) -> str:
    return f"{call.container_id}-{call.ifname}"
