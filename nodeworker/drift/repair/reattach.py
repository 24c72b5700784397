"""Plan how to attach an interface again exactly as it was.

Pure. The recorded plugins run again with their recorded configuration, except for the addresses: the ``static`` plugin
assigns the recorded ones, so that the attachment's reservation is neither freed nor made a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from events.fold import Attachment
from events.schema import PlannedAttachment
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.conflist import ipam_type, type_of
from nodeworker.plugins.spec.names import raw_members
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
"""Plugins that are known to create the same interface after DEL and ADD."""
_TAKE_MAC = frozenset({"bridge", "macvlan", "tap"})
"""Plugins that accept the MAC address in ``runtimeConfig``."""
_ADDRESS_REQUESTS = frozenset({"ips", "ipRanges"})
_ADDRESS_ARGS = frozenset({"IP", "GATEWAY"})
_LEASED = frozenset({"dhcp"})


def obstacle(attachment: Attachment) -> str:
    """Return why the interface of *attachment* can't be attached again as it was, or an empty text."""
    configs = _configs(attachment.plan)
    for config in configs:
        kind = str(config.get("type", ""))
        if kind not in _EXACT:
            return f"it is not known whether plugin {kind} would make the same interface again"
    if ipam_type(configs[0]) in _LEASED:
        return "its address is leased by dhcp, and a new interface would not renew the lease"
    if attachment.plan.device:
        return f"it is device {attachment.plan.device}: the process that took it has to give it back"
    return ""


def plan_as_recorded(plan: PlannedAttachment, recorded: str) -> PlannedAttachment:
    """Return *plan* with the addresses of the *recorded* result, and its MAC address if the plugin accepts one.

    Raises ResultError.
    """
    result = results.decode(recorded, plan.cni_version)
    first, *others = plan.plugins
    config: dict[str, Any] = {**raw_members(first)}
    if _object(config, "ipam"):
        _remove_address_requests(config)
        config["ipam"] = _static(result, plan.ifname)
    mac = next((each.mac for each in result.interfaces if each.sandbox and each.name == plan.ifname), "")
    if mac and type_of(first) in _TAKE_MAC:
        config["runtimeConfig"] = {**_object(config, "runtimeConfig"), "mac": mac}
        config["capabilities"] = {**_object(config, "capabilities"), "mac": True}
    plugins = (msgspec.json.encode(config).decode(), *others)
    args = ";".join(arg for arg in plan.cni_args.split(";") if arg.partition("=")[0] not in _ADDRESS_ARGS)
    return replace(plan, plugins=plugins, cni_args=args)


def _remove_address_requests(config: dict[str, Any]) -> None:
    """Remove the runtime's IPAM requests of the first ADD: the result has the addresses that IPAM chose."""
    if runtime := _object(config, "runtimeConfig"):
        config["runtimeConfig"] = {key: value for key, value in runtime.items() if key not in _ADDRESS_REQUESTS}
    args = _object(config, "args")
    if cni_args := _object(args, "cni"):
        others = {key: value for key, value in cni_args.items() if key not in _ADDRESS_REQUESTS}
        config["args"] = {**args, "cni": others}


def _object(owner: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the members of the object *key* of *owner*, as written if it is; none if it is null or missing."""
    value = owner.get(key)
    if isinstance(value, msgspec.Raw):
        return {} if bytes(value) == b"null" else {**raw_members(value)}
    return value or {}


def _static(result: Result, ifname: str) -> Mapping[str, Any]:
    own = result.ips_of(ifname)
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
