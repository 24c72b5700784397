"""Masquerading (``ipMasq``): packets that leave the container's network get the node's address.

Rules and chains are those of the reference plugins, with ``iptables`` as with nftables: each plugin can
delete the rules of the other.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

from nodeworker.kernel.layouts import nftsocket
from nodeworker.kernel.nftables import client, expressions
from nodeworker.kernel.nftables.client import Chain, Nftables, Rules
from nodeworker.kernel.nftables.expressions import Sought
from nodeworker.kernel.rtnetlink.addresses import Address
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.filter import iptables
from nodeworker.plugins.native.kit.endpoints import error_context, list_container_addresses
from nodeworker.plugins.spec.addresses import with_prefix

Backend: TypeAlias = Literal["iptables", "nftables"]

_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
"""Destinations that are never masqueraded, by IP version."""
_TABLE = "cni_plugins_masquerade"
_CHECKS = Chain(nftsocket.NFPROTO_INET, _TABLE, "masq_checks")
WAY = Chain(nftsocket.NFPROTO_INET, _TABLE, "postrouting")
"""The base chain that leads to the rules of the containers."""
_PRIORITY = 100
_ABOUT_TABLE = "Masquerading for plugins from github.com/containernetworking/plugins"
_ABOUT_CHECKS = "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"
_LONGEST_COMMENT = 128
_PREFIX = "CNI-"
"""The prefix of chains in ``iptables``."""
MARK = rf"{_PREFIX}[0-9a-f]{{24}}|[0-9a-f]{{16}}-[0-9a-f]{{16}}"
_MODULES = "the kernel's nf_tables and nft_masq"
"""Kernel modules that the administrator may have to load, for errors."""


def install(call: Call, backend: Backend | None, addresses: Sequence[Address]) -> None:
    """Masquerade packets from *addresses*. Raises NativeError."""
    task = f"masquerade the packets of {call.ifname} (ipMasq)"
    if _by_iptables(backend):
        try:
            for version in _versions(addresses):
                iptables.ensure(version, _chain(call, version, addresses))
        except NativeError as error:
            raise NativeError(f"can't {task} with iptables: {error}") from error
        return
    with error_context(f"{task} with {_MODULES}"), Nftables.on_node() as nft:
        nft.commit_planned(lambda: _plan(call, nft, addresses))


def remove(call: Call) -> None:
    """Delete the rules of *call*, with either backend; missing rules are no error.

    What other interfaces of the container need stays. Raises NativeError.
    """
    with error_context(f"delete the masquerading rules of {call.ifname} (ipMasq)"), Nftables.on_node() as nft:
        if _there(call, nft):
            nft.commit_planned(lambda: [client.delete_rule(_CHECKS, each) for each in _there(call, nft)])
            return
    addresses = _recorded(call)
    for version in _versions(addresses) or (4, 6):
        if iptables.installed(version):
            iptables.remove(version, _chain(call, version, addresses), lambda: list_container_addresses(call.netns))


def collect(call: Call, backend: Backend | None, valid: Collection[tuple[str, str]]) -> None:
    """Delete the network's rules except those of *valid*, (container ID, interface name).

    *call* is for no container. Raises NativeError.
    """
    kept = {_mark_of(call.network, container_id, ifname) for container_id, ifname in valid}

    def stale(nft: Nftables) -> list[client.Rule]:
        of_network = (each for each in nft.rules(_CHECKS) if each.comment.startswith(f"{_hashed(call.network)}-"))
        return [each for each in of_network if each.comment.partition(",")[0] not in kept]

    with error_context(f"delete unused masquerading rules (ipMasq) of {call.network}"), Nftables.on_node() as nft:
        nft.commit_planned(lambda: [client.delete_rule(_CHECKS, each) for each in stale(nft)])
    if _by_iptables(backend):
        containers = {container_id for container_id, _ in valid}
        for version in (each for each in _MULTICAST if iptables.installed(each)):
            for name, container_id in iptables.identified(version, _PREFIX).items():
                if container_id not in containers and name == _chain_name(call.network, container_id):
                    iptables.remove(version, iptables.Chain(name=name), tuple)


def check(call: Call, backend: Backend | None) -> None:
    """Raise NativeError unless the recorded addresses of *call* are masqueraded."""
    with error_context(f"look up the masquerading of {call.ifname} (ipMasq)"), Nftables.on_node() as nft:
        if left(call, backend, _recorded(call), nft) is not None:
            raise NativeError(f"packets of {call.ifname} are no longer masqueraded: recreate the pod")


def left(call: Call, backend: Backend | None, addresses: Sequence[Address], packet_filter: Rules) -> str | None:
    """Return what remains of the rules for *addresses*; None: all exist.

    Without a *backend* in the configuration, check both: the choice of the ADD is not recorded, and ``iptables`` may
    have been installed or removed since. Raises NativeError, NetlinkError.
    """
    there: list[str] = []
    if backend != "iptables":
        rules = len(_there(call, packet_filter))
        way = expressions.verdict_chain(_CHECKS.name)
        led = any(way in each.expressions for each in packet_filter.rules(WAY))
        if led and rules == len(addresses):
            return None
        if rules:
            there.append(f"{rules} of {len(addresses)} rules of nftables{'' if led else ', to which nothing leads'}")
    if backend != "nftables":
        chains = {version: _chain(call, version, addresses) for version in _versions(addresses)}
        wanted = sum(len(chain.rules) + len(chain.entrances) for chain in chains.values())
        rules = sum(iptables.count_present(version, chain, packet_filter) for version, chain in chains.items())
        if rules == wanted:
            return None
        if rules:
            there.append(f"{rules} of {wanted} rules of iptables")
    return "; ".join(there)


def marks(call: Call) -> tuple[str, ...]:
    """Return texts, one of which every rule for *call* alone contains; they match ``MARK``."""
    return _mark(call), _chain_name(call.network, call.container_id)


def _recorded(call: Call) -> list[Address]:
    """Return the addresses in the attachment's result; none if the runtime passed no result."""
    return [with_prefix(each.address) for each in call.prev_result.ips] if call.prev_result else []


def _by_iptables(backend: Backend | None) -> bool:
    """Return whether to use ``iptables``, as the reference plugins do: by configuration, else if it is installed."""
    return backend == "iptables" or (backend is None and iptables.installed(4))


def _chain(call: Call, version: int, addresses: Sequence[Address]) -> iptables.Chain:
    """Return the chain for *addresses* of *version*, in the reference plugin's order, without repetitions.

    It is for the container, and so for all its interfaces on the network.
    """
    name = _chain_name(call.network, call.container_id)
    comment = f'name: "{call.network}" id: "{call.container_id}"'
    words = f"-m comment --comment {iptables.quoted(comment)}"
    multicast = Sought(source=False, network=ipaddress.ip_network(_MULTICAST[version]), elsewhere=True)
    rules: dict[iptables.Rule, None] = {}
    entrances: dict[iptables.Rule, None] = {}
    for each in (each for each in addresses if each.version == version):
        own = Sought(source=False, network=each.network)
        rules[iptables.rule("", own, f"-j ACCEPT {words}")] = None
        rules[iptables.rule("", multicast, f"-j MASQUERADE {words}")] = None
        sender = Sought(source=True, network=ipaddress.ip_network(each.ip))
        entrances[iptables.rule("POSTROUTING", sender, f"-j {name} {words}")] = None
    return iptables.Chain(name=name, rules=tuple(rules), entrances=tuple(entrances))


def _chain_name(network: str, container_id: str) -> str:
    return _PREFIX + hashlib.sha512(f"{network}{container_id}".encode()).hexdigest()[:24]


def _plan(call: Call, nft: Nftables, addresses: Sequence[Address]) -> list[Request]:
    stale, way = _there(call, nft), nft.rules(WAY)
    leads = len(way) > len(_MULTICAST) and expressions.verdict_chain(_CHECKS.name) in way[-1].expressions
    return [
        client.table(nftsocket.NFPROTO_INET, _TABLE, _ABOUT_TABLE),
        client.chain(_CHECKS, _ABOUT_CHECKS),
        client.base_chain(WAY, "nat", client.POST_ROUTING, _PRIORITY),
        *([] if leads else _lead()),
        *(client.delete_rule(_CHECKS, each) for each in stale),
        *(
            client.rule(
                _CHECKS,
                *expressions.comes_from(each),
                *expressions.goes_elsewhere(each.network),
                expressions.masquerade(),
                comment=_comment(call),
            )
            for each in addresses
        ),
    ]


def _lead() -> Iterator[Request]:
    yield client.flush(WAY)
    for each in _MULTICAST.values():
        yield client.rule(WAY, *expressions.goes_to(ipaddress.ip_network(each)), expressions.return_())
    yield client.rule(WAY, expressions.goto(_CHECKS.name))


def _there(call: Call, packet_filter: Rules) -> list[client.Rule]:
    mark = _mark(call)
    return [each for each in packet_filter.rules(_CHECKS) if each.comment.startswith(mark)]


def _mark(call: Call) -> str:
    """Return the beginning of the comments of all rules of *call*, and of no other rules."""
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
