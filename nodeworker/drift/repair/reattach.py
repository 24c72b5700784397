"""What it takes to make an interface again exactly as it was.

Pure. The plugins that made it make it again from their recorded configuration, but for the addresses: those are the
recorded ones, stated by the ``static`` plugin, so that the reservation that the attachment holds is neither freed nor
taken a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from events.fold import Attachment
from events.schema import PlannedAttachment
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.results import Result

_EXACT = frozenset(
    {
        "bandwidth",
        "bridge",
        "dummy",
        "firewall",
        "host-device",
        "ipvlan",
        "loopback",
        "macvlan",
        "passthru",
        "portmap",
        "ptp",
        "sbr",
        "tap",
        "tuning",
        "vlan",
        "vrf",
    }
)
"""Plugins of which it is known that DEL and ADD again come to the same interface."""
_TAKE_MAC = frozenset({"bridge", "macvlan", "tap"})
"""Those of them that can be told the MAC address, in ``runtimeConfig``."""
_ADDRESS_REQUESTS = frozenset({"ips", "ipRanges"})
_ADDRESS_ARGS = frozenset({"IP", "GATEWAY"})
_LEASED = frozenset({"dhcp"})


def obstacle(attachment: Attachment) -> str:
    """Return why the interface of *attachment* can't be made again as it was, or an empty text."""
    configs = _configs(attachment.plan)
    for config in configs:
        kind = str(config.get("type", ""))
        if kind not in _EXACT:
            return f"nobody knows whether plugin {kind} would make the same interface again"
    if _ipam_type(configs[0]) in _LEASED:
        return "its address is leased by dhcp, and a new interface would not renew the lease"
    if attachment.plan.device:
        return f"it is device {attachment.plan.device}, which whoever took it has to give back"
    return ""


def as_recorded(plan: PlannedAttachment, recorded: str) -> PlannedAttachment:
    """Return *plan* with the addresses, and where it can be said the MAC address, of the result *recorded*.

    Raises ResultError.
    """
    result = results.decode(recorded, plan.cni_version)
    first, *others = _configs(plan)
    if first.get("ipam"):
        first["ipam"] = _static(result, plan.ifname)
        _forget_requests(first)
    mac = next((each.mac for each in result.interfaces if each.sandbox and each.name == plan.ifname), "")
    if mac and first.get("type") in _TAKE_MAC:
        first["runtimeConfig"] = {**(first.get("runtimeConfig") or {}), "mac": mac}
        first["capabilities"] = {**(first.get("capabilities") or {}), "mac": True}
    plugins = tuple(msgspec.json.encode(config).decode() for config in (first, *others))
    args = ";".join(arg for arg in plan.cni_args.split(";") if arg.partition("=")[0] not in _ADDRESS_ARGS)
    return replace(plan, plugins=plugins, cni_args=args)


def _forget_requests(config: dict[str, Any]) -> None:
    """Take out what the runtime asked of IPAM at the time: the result says what came of it."""
    if runtime := config.get("runtimeConfig"):
        config["runtimeConfig"] = {key: value for key, value in runtime.items() if key not in _ADDRESS_REQUESTS}
    args = cast("dict[str, Any]", config.get("args") or {})
    if given := cast("dict[str, Any]", args.get("cni") or {}):
        kept = {key: value for key, value in given.items() if key not in _ADDRESS_REQUESTS}
        config["args"] = {**args, "cni": kept}


def _static(result: Result, ifname: str) -> Mapping[str, Any]:
    own = [
        ip
        for ip in result.ips
        if ip.interface is None
        or not 0 <= ip.interface < len(result.interfaces)
        or result.interfaces[ip.interface].name == ifname
    ]
    ipam: dict[str, Any] = {
        "type": "static",
        "addresses": [{"address": ip.address} | ({"gateway": ip.gateway} if ip.gateway else {}) for ip in own],
    }
    if result.routes:
        ipam["routes"] = [msgspec.to_builtins(route) for route in result.routes]
    if dns := msgspec.to_builtins(result.dns):
        ipam["dns"] = dns
    return ipam


def _configs(plan: PlannedAttachment) -> list[dict[str, Any]]:
    return [cast("dict[str, Any]", msgspec.json.decode(plugin)) for plugin in plan.plugins]


def _ipam_type(config: Mapping[str, Any]) -> str:
    ipam = config.get("ipam")
    return str(cast("dict[str, Any]", ipam).get("type", "")) if isinstance(ipam, dict) else ""
