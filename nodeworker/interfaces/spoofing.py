"""A filter on a bridge's port that lets through only frames with the MAC address that the container was given.

The rules and chains are those of the reference plugin, in the table ``nat`` of the family ``bridge``: either takes away
what the other has made.
"""

from __future__ import annotations

from nodeworker.interfaces.ends import explaining
from nodeworker.interfaces.native import Call, NativeError
from nodeworker.interfaces.veth import Pair
from nodeworker.netlink import expressions, nftables
from nodeworker.netlink.message import Request
from nodeworker.netlink.nftables import Chain, Nftables

_TABLE = "nat"
_PRE_ROUTING = Chain(nftables.BRIDGE, _TABLE, "PREROUTING")
_PRIORITY = -300
_MODULES = "the kernel's nf_tables"
"""What an administrator may have to load."""


def confine(call: Call, wire: Pair) -> None:
    """Let the container send from the MAC address of *wire* only. Raises NativeError."""
    port, sender, comment = *_chains(call), _comment(call)

    def plan(nft: Nftables) -> list[Request]:
        stale = [each for each in nft.rules(_PRE_ROUTING) if each.comment == comment]
        return [
            nftables.table(nftables.BRIDGE, _TABLE),
            nftables.base_chain(_PRE_ROUTING, "filter", nftables.PRE_ROUTING, _PRIORITY, policy=nftables.ACCEPT),
            nftables.chain(port),
            nftables.chain(sender),
            *(nftables.delete_rule(_PRE_ROUTING, each) for each in stale),
            nftables.flush(port),
            nftables.flush(sender),
            nftables.rule(
                _PRE_ROUTING, *expressions.comes_in_by(wire.outside.name), expressions.jump(port.name), comment=comment
            ),
            nftables.rule(port, expressions.jump(sender.name), comment=comment),
            nftables.rule(sender, *expressions.sent_by(wire.inside.mac), expressions.returned(), comment=comment),
            nftables.rule(sender, expressions.dropped(), comment=comment),
        ]

    with explaining(f"filter what {call.ifname} sends (macspoofchk) with {_MODULES}"), Nftables.on_node() as nft:
        nft.agree(lambda: plan(nft))


def release(call: Call) -> None:
    """Take the filter of *call* away; it may be gone. Raises NativeError."""
    port, sender, comment = *_chains(call), _comment(call)

    def plan(nft: Nftables) -> list[Request]:
        there = [each for each in nft.rules(_PRE_ROUTING) if each.comment == comment]
        return [
            *(nftables.delete_rule(_PRE_ROUTING, each) for each in there),
            *(nftables.delete_chain(each) for each in (port, sender) if nft.has(each)),
        ]

    with explaining(f"take the filter of {call.ifname} away (macspoofchk)"), Nftables.on_node() as nft:
        nft.agree(lambda: plan(nft))


def check(call: Call) -> None:
    """Raise NativeError unless the filter of *call* is there."""
    port, sender, comment = *_chains(call), _comment(call)
    with explaining(f"look up the filter of {call.ifname} (macspoofchk)"), Nftables.on_node() as nft:
        there = [[each.comment for each in nft.rules(chain)].count(comment) for chain in (_PRE_ROUTING, port, sender)]
    if there != [1, 1, 2]:
        raise NativeError(f"the filter on the MAC address of {call.ifname} is gone: attach it again")


def _chains(call: Call) -> tuple[Chain, Chain]:
    """Return the chains for what comes in by the container's port, and for who has sent it."""
    name = f"cni-br-iface-{call.container_id}-{call.ifname}"
    return Chain(nftables.BRIDGE, _TABLE, name), Chain(nftables.BRIDGE, _TABLE, f"{name}-mac")


def _comment(call: Call) -> str:
    return f"macspoofchk-{call.container_id}-{call.ifname}"
