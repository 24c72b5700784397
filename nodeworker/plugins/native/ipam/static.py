"""The ``static`` IPAM plugin: addresses from the configuration or the request.

Nothing is reserved, so there is nothing to free.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.ipam import ipam_config
from nodeworker.plugins.spec.addresses import Address, Interface, address, optional, with_prefix
from nodeworker.plugins.spec.names import each_at
from nodeworker.plugins.spec.results import DNS, IP, Result

TYPE = "static"


class _AddressConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    address: str = ""
    gateway: str = ""


class _DNSConfig(DNS, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _Static(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: str = TYPE
    name: str = ""
    addresses: tuple[_AddressConfig, ...] = ()
    routes: tuple[ipam_config.RouteConfig, ...] = ()
    dns: _DNSConfig = _DNSConfig()


class _Net(ipam_config.IpamNetConf, frozen=True, kw_only=True, rename="camel"):
    ipam: _Static


class _Assigned(msgspec.Struct, frozen=True):
    address: Interface
    gateway: Address | None = None


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text."""
    net = ipam_config.misfit(config, _Net)
    return net if isinstance(net, str) else ""


def add(call: Call) -> Result:
    """Return the configured or requested addresses, with the configured routes and dns. Raises NativeError."""
    try:
        net = ipam_config.decode(call.config, _Net)
        assigned = _assigned(call, net)
        routes = ipam_config.routes(net.ipam.routes)
    except ValueError as error:
        raise _refusal(call, error) from None
    dns = net.ipam.dns
    return Result(
        cni_version=net.cni_version,
        ips=tuple(IP(address=str(each.address), gateway=str(each.gateway or "")) for each in assigned),
        routes=routes,
        dns=DNS(nameservers=dns.nameservers, domain=dns.domain, search=dns.search, options=dns.options),
    )


def check(call: Call) -> None:
    """Raise NativeError if an address of ``call.prev_result`` has another gateway than ADD would return."""
    if call.prev_result is None:
        raise NativeError(f"static can't check network {call.network} without prevResult: the runtime must pass it")
    try:
        expected = {each.address.ip: each.gateway for each in _assigned(call, ipam_config.decode(call.config, _Net))}
        recorded = [(with_prefix(each.address).ip, optional(each.gateway)) for each in call.prev_result.ips]
    except ValueError as error:
        raise _refusal(call, error) from None
    for found, gateway in recorded:
        if (wanted := expected.get(found)) and gateway != wanted:
            raise NativeError(
                f"address {found} of interface {call.ifname} on network {call.network} has gateway {gateway}, "
                f"not {wanted}: recreate the pod"
            )


def delete(call: Call) -> None:
    """Do nothing: nothing is reserved."""


def status(call: Call) -> None:
    """Do nothing: nothing can run out."""


def collect(call: Call, valid: Collection[tuple[str, str]]) -> None:
    """Do nothing: nothing is reserved."""


def _assigned(call: Call, net: _Net) -> tuple[_Assigned, ...]:
    """Return the addresses. Raises ValueError.

    Those of ``runtimeConfig``, else of ``args.cni``, replace those of the configuration and CNI_ARGS, which add up.
    """
    from_args = _from_args(ipam_config.cni_args(call, ("IP", "GATEWAY")))
    if requested := net.runtime_config.ips or net.args.cni.ips:
        found = tuple(map(_Assigned, each_at("ips", requested, with_prefix)))
    else:
        found = (*each_at("addresses", net.ipam.addresses, _configured), *from_args)
    ipam_config.refuse_many(net.cni_version, (each.address.version for each in found))
    return found


def _configured(config: _AddressConfig) -> _Assigned:
    return _Assigned(with_prefix(config.address), optional(config.gateway))


def _from_args(args: Mapping[str, str]) -> tuple[_Assigned, ...]:
    """Return the addresses of CNI_ARGS, each with the last gateway in its network."""
    gateways = each_at("GATEWAY in CNI_ARGS", _listed(args.get("GATEWAY", "")), address)
    found = each_at("IP in CNI_ARGS", _listed(args.get("IP", "")), with_prefix)
    return tuple(
        _Assigned(each, next((gateway for gateway in reversed(gateways) if gateway in each.network), None))
        for each in found
    )


def _listed(text: str) -> list[str]:
    return [piece.strip() for piece in text.split(",")] if text else []


def _refusal(call: Call, error: ValueError) -> NativeError:
    return NativeError(f"static can't assign addresses of network {call.network}: {error}")
