"""The MAC filter (``macspoofchk``): a bridge's port accepts only frames from the container's MAC address.

The rules and chains are those of the reference plugin, in the table ``nat`` of the family ``bridge``. So each plugin
can delete the rules of the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from nodeworker.kernel.layouts import nftsocket
from nodeworker.kernel.nftables import client, expressions
from nodeworker.kernel.nftables.client import Chain, Nftables, Rule, Rules
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.endpoints import error_context
from nodeworker.plugins.native.kit.veth import end_names

_TABLE = "nat"
_PRE_ROUTING = Chain(nftsocket.NFPROTO_BRIDGE, _TABLE, "PREROUTING")
_PRIORITY = -300
_PREFIX = "macspoofchk-"
"""The prefix of comments."""
MARK = rf"{_PREFIX}[^\0]+"
_CHAIN = "cni-br-iface-"
_RULES = [1, 1, 2]
"""The number of an attachment's rules in the shared chain, and in each of its two chains."""
_MODULES = "the kernel's nf_tables"
"""Kernel modules that the administrator may have to load, for errors."""


def install(call: Call, outside: str, mac: str) -> None:
    """Restrict the container, whose port on the node is *outside*, to frames from *mac*. Raises NativeError."""
    port, sender, comment = *_chains(call), _comment(call)

    def plan(nft: Nftables) -> list[Request]:
        stale = [each for each in nft.rules(_PRE_ROUTING) if each.comment == comment]
        return [
            client.table(nftsocket.NFPROTO_BRIDGE, _TABLE),
            client.base_chain(_PRE_ROUTING, "filter", client.PRE_ROUTING, _PRIORITY, policy=client.ACCEPT),
            client.chain(port),
            client.chain(sender),
            *(client.delete_rule(_PRE_ROUTING, each) for each in stale),
            client.flush(port),
            client.flush(sender),
            client.rule(_PRE_ROUTING, *expressions.comes_in_by(outside), expressions.jump(port.name), comment=comment),
            client.rule(port, expressions.jump(sender.name), comment=comment),
            client.rule(sender, *expressions.sent_by(mac), expressions.return_(), comment=comment),
            client.rule(sender, expressions.drop(), comment=comment),
        ]

    with error_context(f"filter the frames of {call.ifname} (macspoofchk) with {_MODULES}"), Nftables.on_node() as nft:
        nft.commit_planned(lambda: plan(nft))


def remove(call: Call) -> None:
    """Delete the filter of *call*; a missing one is no error. Raises NativeError."""
    port, sender, comment = *_chains(call), _comment(call)

    def plan(nft: Nftables) -> list[Request]:
        there = [each for each in nft.rules(_PRE_ROUTING) if each.comment == comment]
        return [
            *(client.delete_rule(_PRE_ROUTING, each) for each in there),
            *(client.delete_chain(each) for each in (port, sender) if nft.has_chain(each)),
        ]

    with error_context(f"delete the filter of {call.ifname} (macspoofchk)"), Nftables.on_node() as nft:
        nft.commit_planned(lambda: plan(nft))


def collect(call: Call, valid: Collection[tuple[str, str]]) -> None:
    """Delete the filters of this network's ports except those of *valid*, (container ID, interface name).

    *call* is for no container. A filter does not name its network. It belongs to this network if its port has the
    name that this network gives its ports. It is without an owner if its port no longer exists. Raises NativeError.
    """
    kept = {_comment_on(container_id, ifname) for container_id, ifname in valid}

    def plan(node: Netlink, nft: Nftables) -> list[Request]:
        there = [each for each in nft.rules(_PRE_ROUTING) if each.comment.startswith(_PREFIX)]
        ports = {each.name for each in links.list_all(node)}  # after the rules: a port is created before its filter
        stale = [each for each in there if each.comment not in kept and _is_free(each, call.network, ports)]
        names = dict.fromkeys(_CHAIN + each.comment.removeprefix(_PREFIX) for each in stale)
        chains = [chain for name in names for chain in _chains_named(name) if nft.has_chain(chain)]
        return [
            *(client.delete_rule(_PRE_ROUTING, each) for each in stale),
            *map(client.delete_chain, chains),
        ]

    with (
        error_context(f"delete unused filters (macspoofchk) of {call.network}"),
        Netlink.on_node() as node,
        Nftables.on_node() as nft,
    ):
        nft.commit_planned(lambda: plan(node, nft))


def check(call: Call) -> None:
    """Raise NativeError unless the filter of *call* is complete."""
    with error_context(f"look up the filter of {call.ifname} (macspoofchk)"), Nftables.on_node() as nft:
        if left(call, nft) is not None:
            raise NativeError(f"the filter on the MAC address of {call.ifname} is gone: recreate the pod")


def left(call: Call, packet_filter: Rules) -> str | None:
    """Return what remains of the filter of *call*; None: it is complete. Raises NetlinkError."""
    comment = _comment(call)
    there = [
        [each.comment for each in packet_filter.rules(chain)].count(comment) for chain in (_PRE_ROUTING, *_chains(call))
    ]
    if there == _RULES:
        return None
    return f"{sum(there)} of {sum(_RULES)} rules" if any(there) else ""


def mark(call: Call) -> str:
    """Return the text that all rules of the filter of *call* contain; it matches ``MARK``."""
    return _comment(call)


def _chains(call: Call) -> tuple[Chain, Chain]:
    """Return the chains for the container's port, and for the sender of its frames."""
    return _chains_named(f"{_CHAIN}{call.container_id}-{call.ifname}")


def _chains_named(name: str) -> tuple[Chain, Chain]:
    return Chain(nftsocket.NFPROTO_BRIDGE, _TABLE, name), Chain(nftsocket.NFPROTO_BRIDGE, _TABLE, f"{name}-mac")


def _comment(call: Call) -> str:
    return _comment_on(call.container_id, call.ifname)


def _comment_on(container_id: str, ifname: str) -> str:
    return f"{_PREFIX}{container_id}-{ifname}"


def _is_free(rule: Rule, network: str, ports: Collection[str]) -> bool:
    """Return whether *rule* is for a port of *network*, or for a port that is not among the node's *ports*."""
    port = expressions.came_in_by(rule.expressions)
    return bool(port) and (port not in ports or any(port in end_names(*who) for who in _owners(rule, network)))


def _owners(rule: Rule, network: str) -> Iterator[tuple[str, str, str]]:
    """Yield the container and interface that the comment of *rule* may name: the separator may be part of a name."""
    words = rule.comment.removeprefix(_PREFIX).split("-")
    for place in range(1, len(words)):
        yield "-".join(words[:place]), network, "-".join(words[place:])
