"""The node's address instead of the container's, for what the container sends beyond its network (``ipMasq``).

Rules and chains are those of the reference plugins, with ``iptables`` as with nftables: either takes away what the
other has made.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, TypeAlias

from nodeworker.interfaces import iptables
from nodeworker.interfaces.ends import explaining
from nodeworker.interfaces.native import Call, NativeError
from nodeworker.netlink import expressions, nftables
from nodeworker.netlink.addresses import Address
from nodeworker.netlink.message import Request
from nodeworker.netlink.nftables import Chain, Nftables

Backend: TypeAlias = Literal["iptables", "nftables"]

_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
"""What stays as it is in every network, by IP version."""
_TABLE = "cni_plugins_masquerade"
_CHECKS = Chain(nftables.INET, _TABLE, "masq_checks")
_POST_ROUTING = Chain(nftables.INET, _TABLE, "postrouting")
_PRIORITY = 100
_ABOUT_TABLE = "Masquerading for plugins from github.com/containernetworking/plugins"
_ABOUT_CHECKS = "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"
_LONGEST_COMMENT = 128
_PREFIX = "CNI-"
"""Of the chains of ``iptables``."""
_MODULES = "the kernel's nf_tables and nft_masq"
"""What an administrator may have to load."""


def masquerade(call: Call, backend: Backend | None, addresses: Sequence[Address]) -> None:
    """Let what *addresses* send appear to come from the node. Raises NativeError."""
    task = f"masquerade what {call.ifname} sends (ipMasq)"
    if _by_iptables(backend):
        try:
            for version in _versions(addresses):
                iptables.ensure(version, _chain(call, version, addresses))
        except NativeError as error:
            raise NativeError(f"can not {task} with iptables: {error}") from error
        return
    with explaining(f"{task} with {_MODULES}"), Nftables.on_node() as nft:
        nft.agree(lambda: _plan(call, nft, addresses))


def unmask(call: Call) -> None:
    """Take away what ``masquerade`` has made for *call*, whichever way; it may be gone. Raises NativeError."""
    with explaining(f"end the masquerading of {call.ifname} (ipMasq)"), Nftables.on_node() as nft:
        if _there(call, nft):
            nft.agree(lambda: [nftables.delete_rule(_CHECKS, each) for each in _there(call, nft)])
            return
    addresses = _recorded(call)
    for version in _versions(addresses) or (4, 6):
        if iptables.installed(version):
            chain = _chain(call, version, addresses)
            iptables.remove(version, chain.name, chain.entrances)


def collect(call: Call, backend: Backend | None, valid: Collection[tuple[str, str]]) -> None:
    """Take away what ``masquerade`` has made for this network and none of *valid*, (container ID, interface name).

    *call* is for no container. Raises NativeError.
    """
    kept = {_mark_of(call.network, container_id, ifname) for container_id, ifname in valid}

    def stale(nft: Nftables) -> list[nftables.Rule]:
        of_network = (each for each in nft.rules(_CHECKS) if each.comment.startswith(f"{_hashed(call.network)}-"))
        return [each for each in of_network if each.comment.partition(",")[0] not in kept]

    with explaining(f"end the masquerading (ipMasq) of what is gone from {call.network}"), Nftables.on_node() as nft:
        nft.agree(lambda: [nftables.delete_rule(_CHECKS, each) for each in stale(nft)])
    if _by_iptables(backend):
        containers = {container_id for container_id, _ in valid}
        for version in (each for each in _MULTICAST if iptables.installed(each)):
            for name, container_id in iptables.identified(version, _PREFIX).items():
                if container_id not in containers and name == _chain_name(call.network, container_id):
                    iptables.remove(version, name, ())


def check(call: Call, backend: Backend | None) -> None:
    """Raise NativeError unless the recorded addresses of *call* are masqueraded."""
    addresses = _recorded(call)
    if _by_iptables(backend):
        whole = all(_is_there(version, _chain(call, version, addresses)) for version in _versions(addresses))
    else:
        with explaining(f"look up the masquerading of {call.ifname} (ipMasq)"), Nftables.on_node() as nft:
            whole = len(_there(call, nft)) == len(addresses) and nft.has(_POST_ROUTING)
    if not whole:
        raise NativeError(f"what {call.ifname} sends is no longer masqueraded: attach it again")


def _recorded(call: Call) -> list[Address]:
    """Return the addresses in the attachment's result: none if the runtime gave none."""
    return [ipaddress.ip_interface(each.address) for each in call.prev_result.ips] if call.prev_result else []


def _by_iptables(backend: Backend | None) -> bool:
    """As the reference plugins choose: what is asked for, else ``iptables`` wherever it is."""
    return backend == "iptables" or (backend is None and iptables.installed(4))


def _chain(call: Call, version: int, addresses: Sequence[Address]) -> iptables.Chain:
    """Return the chain for *addresses* of *version*, in the reference plugin's order, without repetitions."""
    name = _chain_name(call.network, call.container_id)
    comment = f'name: "{call.network}" id: "{call.container_id}"'
    words = f"-m comment --comment {iptables.quoted(comment)}"
    own = [each for each in addresses if each.version == version]
    rules: dict[str, None] = {}
    for each in own:
        rules[f"-d {each.network} -j ACCEPT {words}"] = None
        rules[f"! -d {_MULTICAST[version]} -j MASQUERADE {words}"] = None
    return iptables.Chain(
        name=name,
        rules=tuple(rules),
        entrances=tuple(dict.fromkeys(f"POSTROUTING -s {each.ip} -j {name} {words}" for each in own)),
    )


def _chain_name(network: str, container_id: str) -> str:
    return _PREFIX + hashlib.sha512(f"{network}{container_id}".encode()).hexdigest()[:24]


def _is_there(version: int, wanted: iptables.Chain) -> bool:
    there = iptables.present(version, wanted.name)
    return there is not None and (len(there.rules), len(there.entrances)) == (
        len(wanted.rules),
        len(wanted.entrances),
    )


def _plan(call: Call, nft: Nftables, addresses: Sequence[Address]) -> list[Request]:
    stale = _there(call, nft)
    return [
        nftables.table(nftables.INET, _TABLE, _ABOUT_TABLE),
        nftables.chain(_CHECKS, _ABOUT_CHECKS),
        nftables.base_chain(_POST_ROUTING, "nat", nftables.POST_ROUTING, _PRIORITY),
        nftables.flush(_POST_ROUTING),
        *(
            nftables.rule(_POST_ROUTING, *expressions.goes_to(ipaddress.ip_network(each)), expressions.returned())
            for each in _MULTICAST.values()
        ),
        nftables.rule(_POST_ROUTING, expressions.goto(_CHECKS.name)),
        *(nftables.delete_rule(_CHECKS, each) for each in stale),
        *(
            nftables.rule(
                _CHECKS,
                *expressions.comes_from(each),
                *expressions.goes_elsewhere(each.network),
                expressions.masqueraded(),
                comment=_comment(call),
            )
            for each in addresses
        ),
    ]


def _there(call: Call, nft: Nftables) -> list[nftables.Rule]:
    return [each for each in nft.rules(_CHECKS) if each.comment.startswith(_mark(call))]


def _mark(call: Call) -> str:
    """Return what the comments of the rules of *call* begin with, and no others do."""
    return _mark_of(call.network, call.container_id, call.ifname)


def _mark_of(network: str, container_id: str, ifname: str) -> str:
    return "-".join(_hashed(each) for each in (network, f"{ifname}:{container_id}"))


def _comment(call: Call) -> str:
    text = f"{_mark(call)}, net: {call.network}, if: {call.ifname}, id: {call.container_id}"
    return text.replace('"', "")[:_LONGEST_COMMENT]


def _hashed(text: str) -> str:
    return hashlib.sha512(text.encode()).hexdigest()[:16]


def _versions(addresses: Iterable[Address]) -> list[int]:
    return list(dict.fromkeys(each.version for each in addresses))
