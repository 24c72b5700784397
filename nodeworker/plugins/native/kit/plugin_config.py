"""Decode the configuration of a native plugin. Pure.

An unknown key may be an option of a newer reference plugin, and so may a value of another type. In both cases the
worker executes the reference plugin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from events.process.decoding import convert
from nodeworker.plugins.native.api import INVALID_CONFIG, Call, NativeError
from nodeworker.plugins.spec import addresses
from nodeworker.plugins.spec.results import DNS

U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
"""A number that fits the messages to the kernel."""


class PluginConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The keys that every plugin's configuration may have (CNI specification 1.1, section 1)."""

    type: str
    cni_version: str = ""
    cni_versions: tuple[str, ...] = ()
    name: str = ""
    disable_check: bool = False
    disable_gc: bool = msgspec.field(default=False, name="disableGC")
    capabilities: dict[str, bool] = {}
    ipam: dict[str, Any] = {}
    dns: DNS = DNS()
    args: dict[str, Any] = {}
    runtime_config: dict[str, Any] = {}
    prev_result: Any = None

    @property
    def has_ipam(self) -> bool:
        """Whether an IPAM plugin takes part."""
        return bool(self.ipam.get("type"))


C = TypeVar("C", bound=PluginConfig)


def decode_config(call: Call, kind: type[C]) -> C:
    """Return the configuration of *call*. Raises NativeError."""
    try:
        return convert(call.config, kind)
    except msgspec.ValidationError as error:
        raise NativeError(f"the configuration of network {call.network} can't be used: {error}") from None


def decode_options(config: Mapping[str, Any], kind: type[C]) -> C | str:
    """Return the configuration, or the first part of it that only the reference plugin supports."""
    try:
        return convert(config, kind)
    except msgspec.ValidationError as error:
        return str(error)


def parse_mac(key: str, value: Any, ifname: str) -> str:
    """Return the hardware address *value*, which *key* requests for the interface, in canonical form; empty for none.

    Raises NativeError for one that no interface can have.
    """
    if not isinstance(value, str):
        raise NativeError(
            f"{key} of {ifname} is {value!r}, which is not a string: write it like 02:00:5e:10:00:01", INVALID_CONFIG
        )
    try:
        return value and addresses.interface_address(value)
    except ValueError as error:
        raise NativeError(f"{key} of {ifname}: {error}", INVALID_CONFIG) from None


def requested_mac(call: Call, config: PluginConfig, stated: Mapping[str, Any]) -> str:
    """Return the requested MAC address of the interface, empty for any. The runtime's takes precedence.

    *stated* are the addresses in the plugin's own options by their key, the strongest last. Raises NativeError for
    one that no Ethernet interface can have.
    """
    asked = {
        "MAC in CNI_ARGS": call.args.get("MAC", ""),
        **stated,
        "runtimeConfig.mac": config.runtime_config.get("mac"),
    }
    key, value = next(((key, value) for key, value in reversed(asked.items()) if value), ("", ""))
    mac = parse_mac(key, value, call.ifname)
    if mac:
        check_fits(key, mac, addresses.ETHERNET, call.ifname)
    return mac


def check_fits(key: str, mac: str, size: int, ifname: str) -> None:
    """Raise NativeError unless *mac*, which *key* requests, has *size* bytes, as the addresses of *ifname* have."""
    try:
        addresses.check_fits(mac, size, ifname)
    except ValueError as error:
        raise NativeError(f"{key} of {ifname}: {error}", INVALID_CONFIG) from None
